"""The page of a report in a real browser."""

import dataclasses
import random
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from browser import chromium, console_errors, go_offline

import shakegpt_jax
from shakegpt_jax.inference import evaluation
from shakegpt_jax.inference.inspection import attention_weights
from shakegpt_jax.training.run import train
from shakegpt_jax.web.report import write_report

pytestmark = pytest.mark.slow

HARD_TEXT = (
    "</script><script>document.title = 'broken out'</script> <b>bold</b> ${x} $data\n"
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd, mixed \u202eoverride\u202c\n"
    "\U0001f600 smile, \U0001f469\u200d\U0001f469\u200d\U0001f467, cafe\u0301\ta\u2028b \x07\n\n"
)

LONG, SHORT = "First Citizen: " * 30, "Nay.\n" * 200


@pytest.fixture(scope="module")
def lm(finished) -> shakegpt_jax.LanguageModel:
    """Return a model whose attention is far from uniform."""
    lm = shakegpt_jax.load(finished)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: 20 * x if "c_attn" in jax.tree_util.keystr(path) else x, lm.params
    )
    return dataclasses.replace(lm, params=params)


@pytest.fixture(scope="module")
def page(finished, lm, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "load", lambda *args, **options: lm)
        write_report(evaluation.select(finished), path)
    return path


@pytest.fixture(scope="module")
def lines_page(finished, tmp_path_factory) -> Path:
    """One line that is longer than a row, an empty line and many short lines; fine-tuned."""
    folder = tmp_path_factory.mktemp("lines")
    (folder / "lines.txt").write_text(f"{LONG}\n\n{SHORT}")
    selection = evaluation.select(finished, path=str(folder / "lines.txt"))
    tuned = selection.lm.config.replace({"train.init_from": "/home/someone/the <b>source"})
    lm = dataclasses.replace(selection.lm, config=tuned)
    write_report(dataclasses.replace(selection, lm=lm), folder / "report.html")
    return folder / "report.html"


def bars(chrome) -> np.ndarray:
    items = "[...document.querySelectorAll('#distribution li')]"
    script = f"return {items}.map(item => item.dataset.probability)"
    return np.array(chrome.execute_script(script), float)


def text_of(chrome, name: str) -> str:
    return chrome.find_element("id", name).text


def character(chrome, index: int):
    return chrome.find_element("css selector", f'#text [data-index="{index}"]')


def point_at(chrome, element, *, click: bool = False) -> None:
    """Point beside the middle of an element: there, a newline, which has no width, shows a sign."""
    from selenium.webdriver import ActionChains

    chrome.execute_script("arguments[0].scrollIntoView({ block: 'nearest' })", element)
    actions = ActionChains(chrome).move_to_element_with_offset(element, 2, 0)
    (actions.click() if click else actions).perform()


def press(chrome, *keys: str, control: bool = False) -> None:
    from selenium.webdriver import ActionChains, Keys

    actions = ActionChains(chrome)
    if control:
        actions.key_down(Keys.CONTROL).send_keys(*keys).key_up(Keys.CONTROL).perform()
    else:
        actions.send_keys(*keys).perform()


def open_page(chrome, page: Path) -> None:
    go_offline(chrome)
    chrome.get(page.as_uri())
    assert console_errors(chrome) == []
    assert chrome.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert all(each.text for each in chrome.find_elements("css selector", "h1, h2, h3"))


def test_pointing_at_a_character_shows_its_distribution(page, lm, text):
    val_text = text[18_000:]
    probabilities = np.exp(lm.score(val_text))
    with chromium() as chrome:
        open_page(chrome, page)
        assert chrome.title == "run: looking inside"
        loss = lm.evaluate(val_text).loss
        assert f"{loss:.4f}" in text_of(chrome, "figures")
        for index in (3, 40):
            point_at(chrome, character(chrome, index))
            assert f"Character {index + 1}:" in text_of(chrome, "prediction-title")
            found = bars(chrome)
            assert len(found) == lm.tokenizer.vocab_size
            assert found.sum() == pytest.approx(1, abs=1e-3)
            actual = lm.tokenizer.encode(val_text[index])[0]
            assert found[actual] == pytest.approx(probabilities[index - 1], rel=1e-2)
            marked = chrome.find_elements("css selector", "#distribution .actual")
            assert len(marked) == 1
            script = "return arguments[0].style.getPropertyValue('--level')"
            level = chrome.execute_script(script, character(chrome, index))
            expected = min(1, -np.log(probabilities[index - 1]) / np.log(1000))
            assert float(level) == pytest.approx(expected, abs=2e-3)
        point_at(chrome, character(chrome, 0))
        assert "not predicted" in text_of(chrome, "prediction-text")
        assert console_errors(chrome) == []


def test_the_attention_of_a_line_opens_and_follows_the_keys(page, lm, text):
    val_text = text[18_000:]
    start = val_text.index("\n", 60) + 1
    while val_text[start] == "\n":
        start += 1
    with chromium() as chrome:
        open_page(chrome, page)
        character(chrome, start + 3).click()
        maps = chrome.find_elements("css selector", ".map")
        assert len(maps) == 2  # one layer of two heads
        spans = "return document.querySelector('#attention-text').textContent"
        assert val_text[start : start + 4] in chrome.execute_script(spans)
        end = min(start + 8, val_text.index("\n", start))  # of a line of at most a window
        window = lm.tokenizer.encode(val_text[end - 8 : end])[None].astype(np.int32)
        weights = np.asarray(attention_weights(lm.model, lm.params, window))[0, 0]  # 2 x 8 x 8
        levels = "[...document.querySelectorAll('#attention-text .character')]"
        levels = f"return {levels}.map(e => e.style.getPropertyValue('--level'))"
        found = np.array(chrome.execute_script(levels), float) ** 2
        np.testing.assert_allclose(found, weights[:, start + 3 - end].mean(0), atol=5e-3)
        first = text_of(chrome, "attention-summary")
        assert "the mean of all 2 heads" in first
        maps[1].click()
        assert maps[1].get_attribute("aria-pressed") == "true"
        assert "layer 1, head 2" in text_of(chrome, "attention-summary")
        pixels = "arguments[0].getContext('2d').getImageData(0, 0, 4, 2).data"
        for canvas in chrome.find_elements("css selector", ".map canvas"):
            assert chrome.execute_script(f"return {pixels}.some(x => x > 0)", canvas)
        chrome.execute_script("document.getElementById('attention-text').focus()")
        before = text_of(chrome, "attention-summary")
        press(chrome, "\ue014")  # arrow right
        assert text_of(chrome, "attention-summary") != before
        chrome.execute_script("document.getElementById('text').focus()")
        press(chrome, "\ue014")
        assert f"Character {start + 5}:" in text_of(chrome, "prediction-title")
        press(chrome, "\ue015", "\ue007")  # arrow down, enter
        assert console_errors(chrome) == []


def test_long_lines_have_pieces_and_empty_lines_no_attention(lines_page):
    with chromium() as chrome:
        open_page(chrome, lines_page)
        copies = text_of(chrome, "copies-note")
        assert copies.startswith("No stretch of 20 or more characters stands in the training text")
        source = "The text of the <b>source, from which the model started, has not been compared."
        assert copies.endswith(source)
        assert "/home" not in lines_page.read_text()
        assert "(1 layer of 2 heads" in text_of(chrome, "summary")
        assert not chrome.find_elements("id", "copied-legend")
        note = text_of(chrome, "attention-note")
        assert "A line of more than 8 characters is cut into pieces." in note
        assert "lines or pieces can be opened." in note
        selected = "[...document.querySelectorAll('#text .selected')].map(e => e.textContent)"
        selected = f"return {selected}.join('')"
        character(chrome, 20).click()
        assert text_of(chrome, "attention-title") == "Attention of the chosen piece of a long line"
        assert chrome.execute_script(selected) == LONG[16:24]
        assert chrome.find_element("id", "heads").is_displayed()
        point_at(chrome, character(chrome, len(LONG) + 1), click=True)
        assert text_of(chrome, "attention-summary") == "The chosen line is empty."
        assert not chrome.find_element("id", "heads").is_displayed()
        assert not chrome.find_element("id", "attention-text").is_displayed()
        point_at(chrome, character(chrome, len(LONG) + 2 + 4), click=True)  # the first newline
        assert text_of(chrome, "attention-title") == "Attention of the chosen line"
        assert chrome.find_element("id", "heads").is_displayed()
        assert chrome.execute_script(selected) == "Nay."
        assert console_errors(chrome) == []


def test_the_keyboard_reaches_every_character_and_keeps_its_choice(lines_page):
    from selenium.webdriver import Keys

    size = len(LONG) + 2 + len(SHORT)
    with chromium() as chrome:
        open_page(chrome, lines_page)

        def pressed(*keys: str, control: bool = False) -> int:
            press(chrome, *keys, control=control)
            title = text_of(chrome, "prediction-title")
            return int(title.split()[1].rstrip(":").replace(",", "")) - 1

        point_at(chrome, character(chrome, 100))  # the pointer stays there
        chrome.execute_script("document.getElementById('text').focus()")
        assert pressed(Keys.HOME) == 0
        assert 0 < pressed(Keys.ARROW_DOWN) < len(LONG) / 2  # a row of the long line
        assert pressed(Keys.ARROW_UP) == 0
        assert pressed(Keys.END) == len(LONG)
        start = len(LONG) + 2
        assert pressed(Keys.ARROW_DOWN) == start - 1 and pressed(Keys.ARROW_DOWN) == start
        below = pressed(Keys.PAGE_DOWN)
        assert (below - start) % 5 == 0 and (below - start) // 5 > 5
        assert pressed(Keys.PAGE_UP) == start
        assert pressed(Keys.PAGE_DOWN, Keys.PAGE_DOWN) > below
        time.sleep(0.5)  # Chromium tells the page that another character is below the pointer
        assert pressed(Keys.ARROW_RIGHT) > below
        assert pressed(Keys.END, control=True) == size - 1
        time.sleep(0.5)
        assert pressed(Keys.HOME) == size - 5
        assert pressed(*[Keys.PAGE_UP] * 50) == pressed(Keys.HOME, control=True) == 0
        point_at(chrome, character(chrome, 50))
        assert "Character 51:" in text_of(chrome, "prediction-title")
        chrome.execute_script("document.getElementById('attention-text').focus()")
        summaries = []
        for key in (Keys.HOME, Keys.END, Keys.ARROW_LEFT):
            press(chrome, key)
            summaries.append(text_of(chrome, "attention-summary"))
        assert len(set(summaries)) == 3
        assert console_errors(chrome) == []


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_horizontal_scrolling(page, dark):
    with chromium(390, 844, dark=dark) as chrome:
        open_page(chrome, page)
        for name in ("scrollWidth", "clientWidth"):
            assert chrome.execute_script(f"return document.documentElement.{name}") == 390
        character(chrome, 9).click()  # a tap
        assert "Character 10:" in text_of(chrome, "prediction-title")
        script = "return getComputedStyle(document.body)[arguments[0]].match(/\\d+/g).map(Number)"
        paper, ink = (sum(chrome.execute_script(script, c)) for c in ("backgroundColor", "color"))
        assert (paper < ink) == dark
        assert abs(paper - ink) > 500


def test_texts_of_every_kind_are_shown_as_they_are(run_config, tmp_path):
    draw = random.Random(0)
    many = [chr(0x4E00 + i) for i in range(5_000)]
    text = "".join(HARD_TEXT + "".join(draw.choices(many, k=300)) + "\n" for _ in range(10))
    text += "".join(many) + "\n" + HARD_TEXT * 10
    (tmp_path / "hard.txt").write_text(text)
    run_config.data.path = str(tmp_path / "hard.txt")
    run_config.train.num_steps = run_config.train.eval_every = 3
    train(run_config.freeze(), tmp_path / "<b>run")
    write_report(evaluation.select(tmp_path / "<b>run"), tmp_path / "hard.html")
    shown = text[int(len(text) * 0.9) :]
    with chromium() as chrome:
        open_page(chrome, tmp_path / "hard.html")
        assert chrome.title == "<b>run: looking inside"
        assert text_of(chrome, "title") == "Looking inside <b>run"
        assert not chrome.find_elements("css selector", "b")
        point_at(chrome, character(chrome, 30))
        assert len(bars(chrome)) == 100
        assert "most probable of 5," in text_of(chrome, "prediction-note")
        count = "return document.querySelectorAll('#text .character').length"
        assert chrome.execute_script(count) == min(len(shown), 2**25 // len(set(text)))
        names = "return [...document.querySelectorAll('#text .named')].map(e => e.textContent)"
        assert {"U+202E", "U+200D", "U+2028", "U+0007"} <= set(chrome.execute_script(names))
        assert console_errors(chrome) == []
