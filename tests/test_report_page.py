"""The page of a report in a real browser."""

import dataclasses
import random
from pathlib import Path

import jax
import numpy as np
import pytest
from browser import chromium, console_errors, go_offline

import shakegpt_jax
from shakegpt_jax.inference import run_evaluation
from shakegpt_jax.inference.attention_weights import attention_weights
from shakegpt_jax.training.run import train
from shakegpt_jax.web.report import write_report

pytestmark = pytest.mark.slow

HARD_TEXT = (
    "</script><script>document.title = 'broken out'</script> <b>bold</b> ${x} $data\n"
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd, mixed \u202eoverride\u202c\n"
    "\U0001f600 smile, \U0001f469\u200d\U0001f469\u200d\U0001f467, cafe\u0301\ta\u2028b \x07\n\n"
)


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
        patch.setattr(run_evaluation, "load", lambda *args, **options: lm)
        write_report(run_evaluation.select(finished), path)
    return path


def bars(chrome) -> np.ndarray:
    items = "[...document.querySelectorAll('#distribution li')]"
    script = f"return {items}.map(item => item.dataset.probability)"
    return np.array(chrome.execute_script(script), float)


def text_of(chrome, name: str) -> str:
    return chrome.find_element("id", name).text


def character(chrome, index: int):
    return chrome.find_element("css selector", f'#text [data-index="{index}"]')


def point_at(chrome, element) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(chrome).move_to_element(element).perform()


def press(chrome, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(chrome).send_keys(*keys).perform()


def open_page(chrome, page: Path) -> None:
    go_offline(chrome)
    chrome.get(page.as_uri())
    assert console_errors(chrome) == []
    assert chrome.execute_script("return performance.getEntriesByType('resource').length") == 0


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
    write_report(run_evaluation.select(tmp_path / "<b>run"), tmp_path / "hard.html")
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
