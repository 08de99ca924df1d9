"""The page with a prompt, in a real browser, before a real server."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from browser import chromium, click, console_errors, emulate, fill, firefox, written
from conftest import small_config

import shakegpt_jax
from shakegpt_jax.training.run import train
from shakegpt_jax.web.page import bundle

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
WAIT = 60  # seconds, at most; compiling takes a while
LEFT, UP, RIGHT, DOWN = "\ue012", "\ue013", "\ue014", "\ue015"
ENTER, ESCAPE, TAB, HOME = "\ue007", "\ue00c", "\ue004", "\ue011"


@contextlib.contextmanager
def serving(workdir: Path) -> Iterator[str]:
    """Serve a run and yield the address of the page."""
    command = [sys.executable, "-m", "shakegpt_jax.serve", "--port=0", f"--workdir={workdir}"]
    process = subprocess.Popen([*command, "--grace=0"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if found := re.search(r"Open (\S+)", line):
                yield found[1] + "/"
                break
        else:
            raise AssertionError("the server ended")
    finally:
        process.terminate()
        process.communicate(timeout=WAIT)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, text_file) -> Path:
    """Train a model that has learned enough to depend on the text before a character."""
    config = small_config()
    config.data.path = str(text_file)
    config.optimizer.learning_rate = 0.01
    config.train.num_steps = config.train.eval_every = 400
    config.train.steps_per_dispatch = 50
    workdir = tmp_path_factory.mktemp("page") / "run"
    train(config.freeze(), workdir)
    return workdir


@pytest.fixture(scope="module")
def address(workdir) -> Iterator[str]:
    with serving(workdir) as address:
        yield address


@pytest.fixture(scope="module")
def lm(workdir) -> shakegpt_jax.LanguageModel:
    return shakegpt_jax.load(workdir)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium() as browser:
        yield browser


@pytest.fixture
def chrome(browser, address) -> Iterator:
    """A new tab with the page."""
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    emulate(browser, 1180, 760)
    browser.get(address)
    yield browser
    errors = console_errors(browser)
    browser.close()
    browser.switch_to.window(first)
    assert errors == []


def wait_until(chrome, condition: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    waiting = WebDriverWait(chrome, WAIT, 0.05)
    waiting.until(lambda chrome: chrome.execute_script(f"return {condition}"), condition)


def wait_for(chrome, text: str) -> None:
    wait_until(chrome, f"document.getElementById('text').textContent === {as_script(text)}")
    wait_until(chrome, "document.getElementById('stop').hidden")


def wait_until_done(chrome) -> None:
    wait_until(chrome, "document.getElementById('status').textContent.startsWith('Done')")


def as_script(text: str) -> str:
    return "decodeURIComponent('" + urllib.parse.quote(text, safe="") + "')"


def shown(chrome, name: str = "text") -> str:
    return chrome.execute_script(f"return document.getElementById('{name}').textContent")


def generate(chrome, text: str) -> None:
    click(chrome, "generate")
    wait_for(chrome, text)


def character(chrome, index: int):
    return chrome.find_element("css selector", f'#text [data-index="{index}"]')


def choose(chrome, name: str) -> None:
    bars = chrome.find_elements("css selector", "#distribution li")
    [bar] = [bar for bar in bars if bar.get_attribute("data-character") == name]
    bar.click()


def press(chrome, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(chrome).send_keys(*keys).perform()


def point_at(chrome, element) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(chrome).move_to_element(element).perform()


def tap(chrome, element) -> None:
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    touch = ActionBuilder(chrome, mouse=PointerInput("touch", "finger"))
    touch.pointer_action.move_to(element).pointer_down().pointer_up()
    touch.perform()


def another(character: str) -> str:
    return "e" if character != "e" else "t"


def versions(chrome) -> list:
    return chrome.find_elements("css selector", "#versions button")


def test_the_text_is_that_of_generate_and_goes_on_with_the_same_dice(chrome, lm):
    assert chrome.title == "run: one character at a time"
    assert f"{lm.tokenizer.vocab_size} characters" in shown(chrome, "about")
    for name, value in {"temperature": "0.8", "top_k": "", "seed": "0", "length": "500"}.items():
        assert chrome.find_element("id", name).get_attribute("value") == value
    prompt = "First\nlet us"
    options = {"temperature": 1.5, "top_k": 9, "top_p": 0.9, "min_p": 0.2, "seed": 2**32 - 1}
    fill(chrome, prompt=prompt, length=40, **options)
    expected = lm.generate(prompt, 90, **options)
    generate(chrome, expected[: len(prompt) + 40])
    assert "40 characters" in shown(chrome, "status")
    fill(chrome, length=50)
    click(chrome, "continue")
    wait_for(chrome, expected)
    assert "length=90" in chrome.current_url


def test_the_api_is_described_on_a_page(chrome, address):
    chrome.get(f"{address}docs")
    assert len(chrome.find_elements("css selector", "meta[name=description]")) == 1
    assert "POST /v1/completions" in shown(chrome, "routes")
    assert "min_pnumber (minimum 0, maximum 1) or null0" in shown(chrome, "schemas")
    emulate(chrome, 390, 800)
    assert chrome.execute_script("return document.documentElement.scrollWidth") <= 390


def test_a_long_text_streams_and_stops_and_goes_on(chrome, lm):
    fill(chrome, prompt="First", length=10000)
    click(chrome, "generate")
    wait_until(chrome, "document.getElementById('text').textContent.length > 60")
    assert shown(chrome, "status") == "Writing…"
    click(chrome, "stop")
    text = shown(chrome)
    time.sleep(0.5)
    assert shown(chrome) == text
    n_new = len(text) - len("First")
    assert 50 <= n_new < 10_000
    assert f"Stopped: {n_new:,} characters" in shown(chrome, "status")
    assert f"length={n_new}&" in chrome.current_url
    fill(chrome, length=30)
    click(chrome, "continue")
    wait_for(chrome, lm.generate("First", n_new + 30))
    fill(chrome, seed=1, length=10000)
    click(chrome, "generate")
    wait_until(chrome, "document.getElementById('status').textContent === 'Writing…'")
    wait_until(chrome, "location.hash.includes('seed=1&')")
    press(chrome, ESCAPE)
    assert "Stopped: " in shown(chrome, "status")
    assert lm.generate("First", n_new) == text


def test_stop_is_in_sight_where_the_text_grows(chrome):
    fill(chrome, prompt="First", length=1000)
    click(chrome, "generate")
    wait_until_done(chrome)
    for length in (10_000, 9_000):
        fill(chrome, length=length)
        click(chrome, "continue")
        more = f"document.querySelectorAll('#text .character').length > {11_500 - length}"
        wait_until(chrome, more)
        chrome.execute_script("document.querySelector('[data-index=\"500\"]').scrollIntoView()")
        stop = chrome.find_element("id", "continue")
        box = chrome.execute_script("return arguments[0].getBoundingClientRect()", stop)
        height = chrome.execute_script("return innerHeight")
        assert stop.text == "Stop" and 0 < box["top"] < box["bottom"] <= height
        stop.click()
        assert "Stopped: " in shown(chrome, "status")
        assert stop.text == "Continue"


def test_pointing_at_a_character_shows_every_chance(chrome, lm):
    fill(chrome, prompt="First", length=30)
    text = lm.generate("First", 30)
    generate(chrome, text)
    context = text[: 5 + 2]
    expected = np.exp(jax.nn.log_softmax(lm.logits(context)[-1]))
    point_at(chrome, character(chrome, 7))
    script = "return [...document.querySelectorAll('#distribution li')].map(e => e.dataset.{0})"
    found = np.array(chrome.execute_script(script.format("probability")), float)
    names = chrome.execute_script(script.format("character"))
    assert "".join(names) == lm.tokenizer.vocabulary
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    character(chrome, 7).click()  # holds it
    point_at(chrome, character(chrome, 9))
    [marked] = chrome.find_elements("css selector", "#distribution .actual")
    assert marked.get_attribute("data-character") == text[7]
    background = "return getComputedStyle(arguments[0]).backgroundColor"
    plain = chrome.execute_script(background, character(chrome, 7))
    click(chrome, "colour")
    assert chrome.execute_script(background, character(chrome, 7)) != plain
    level = "return Number(arguments[0].style.getPropertyValue('--level'))"
    surprise = -np.log(expected[lm.tokenizer.vocabulary.index(text[7])]) / np.log(1000)
    found_level = chrome.execute_script(level, character(chrome, 7))
    assert found_level == pytest.approx(min(1, surprise), abs=2e-3)
    # The prompt is coloured too, except for its first character.
    wait_until(chrome, "document.querySelector('[data-index=\"1\"]').style.length > 0")
    surprise = -lm.score("First")[2] / np.log(1000)
    assert chrome.execute_script(level, character(chrome, 3)) == pytest.approx(
        min(1, surprise), abs=2e-3
    )


def test_a_prompt_that_cannot_be_scored_says_so_and_is_not_asked_for_again(chrome, lm):
    fill(chrome, prompt="First", length=20)
    text = lm.generate("First", 20)
    generate(chrome, text)
    chrome.execute_script(
        "window.asked = 0; window.fetched = fetch;"
        "window.fetch = async (...all) => { asked += 1; throw new TypeError('no network'); }"
    )
    for index in (1, 2, 3):
        point_at(chrome, character(chrome, index))
        assert "Prompt: " in shown(chrome, "panel-title")
        wait_until(chrome, "document.getElementById('panel-note').textContent !== ''")
        assert "not known. The server does not answer" in shown(chrome, "panel-note")
    assert chrome.execute_script("return asked") == 1
    click(chrome, "colour")
    assert chrome.execute_script("return asked") == 1
    # When the text is shown again, the server may have come back.
    chrome.execute_script("window.fetch = fetched")
    versions(chrome)[0].click()
    wait_until(chrome, "document.querySelector('[data-index=\"1\"]').style.length > 0")
    longest = 2**20 // (lm.tokenizer.vocab_size + 1)
    script = (
        f"{bundle('server.js')} makeBackend(JSON.parse($('data').textContent))"
        ".score('e'.repeat(arguments[0])).then((scores) => arguments[1](scores.length),"
        " (error) => arguments[1](error.message))"
    )
    assert chrome.execute_async_script(script, longest) == longest
    assert f"up to {longest:,} char" in chrome.execute_async_script(script, longest + 1)


def test_branches_use_the_same_dice_and_are_kept(chrome, lm):
    prompt, n = "First", 30
    fill(chrome, prompt=prompt, length=n, seed=5)
    original = lm.generate(prompt, n, seed=5)
    generate(chrome, original)
    first, second = len(prompt) + 4, len(prompt) + 12
    character(chrome, first).click()
    other = another(original[first])
    choose(chrome, other)
    branch = written(lm, original[:first] + other, n - 5, 5, start=5)
    assert branch[first + 1 :] != original[first + 1 :]
    wait_for(chrome, branch)
    character(chrome, second).click()
    other = another(branch[second])
    choose(chrome, other)
    deeper = written(lm, branch[:second] + other, n - 13, 5, start=13)
    wait_for(chrome, deeper)
    # Near the text there is a way back.
    click(chrome, "to-parent")
    wait_for(chrome, branch)
    click(chrome, "to-parent")
    wait_for(chrome, original)
    assert not chrome.find_element("id", "branch-note").is_displayed()
    chrome.back()
    chrome.back()
    wait_for(chrome, deeper)
    assert len(versions(chrome)) == 3
    assert len(chrome.find_elements("css selector", "#versions ul ul button")) == 1
    versions(chrome)[0].click()
    wait_for(chrome, original)
    assert versions(chrome)[0].get_attribute("aria-current") == "true"
    # Back is what was shown before, forward again.
    for step, text in (("back", deeper), ("back", branch), ("back", original), ("forward", branch)):
        getattr(chrome, step)()
        wait_for(chrome, text)
    # A change back to what the dice gave is the text that was there before.
    character(chrome, first).click()
    choose(chrome, original[first])
    wait_for(chrome, original)
    assert len(versions(chrome)) == 3
    # The link alone writes the text again.
    versions(chrome)[2].click()
    wait_for(chrome, deeper)
    link = chrome.current_url
    with chromium() as fresh:
        fresh.get(link)
        wait_for(fresh, deeper)
        assert fresh.find_element("id", "seed").get_attribute("value") == "5"
        assert len(versions(fresh)) == 3
        versions(fresh)[0].click()
        wait_for(fresh, original)
        assert fresh.current_url != link
        assert console_errors(fresh) == []


def test_a_chosen_space_or_newline_can_be_seen(chrome, lm):
    fill(chrome, prompt="First", length=9)
    text = lm.generate("First", 9)
    generate(chrome, text)
    for chosen in " \n":
        character(chrome, 6).click()
        choose(chrome, chosen)
        wait_for(chrome, written(lm, text[:6] + chosen, 7, 0, start=2))
        press(chrome, ESCAPE)
        style = "return getComputedStyle(arguments[0], arguments[1])[arguments[2]]"
        changed = character(chrome, 6)
        assert chrome.execute_script(style, changed, None, "outlineStyle") == "solid"
    assert chrome.execute_script(style, changed, "::before", "opacity") == "1"


def test_a_changed_prompt_uses_the_same_dice(chrome, lm):
    fill(chrome, prompt="First", length=20)
    generate(chrome, lm.generate("First", 20))
    character(chrome, 1).click()
    wait_until(chrome, "document.querySelectorAll('#distribution li').length > 50")
    choose(chrome, "a")
    wait_for(chrome, lm.generate("Farst", 20))
    assert chrome.find_element("id", "prompt").get_attribute("value") == "Farst"


def test_four_samples_side_by_side(chrome, lm):
    fill(chrome, prompt="First", length=9)
    generate(chrome, lm.generate("First", 9))
    fill(chrome, prompt="First", length=25, seed=2**32 - 2)
    click(chrome, "compare")
    seeds = [2**32 - 2, 2**32 - 1, 0, 1]
    texts = [lm.generate("First", 25, seed=seed) for seed in seeds]
    found = "[...document.querySelectorAll('.sample-text')].map(e => e.textContent)"
    wait_until(chrome, f"{found}.length === 4 && {found}.every(text => text.length === 30)")
    assert chrome.execute_script(f"return {found}") == texts
    boxes = [card.rect for card in chrome.find_elements("css selector", ".sample")]
    assert len({(box["width"], box["height"]) for box in boxes}) == 1
    wait_until(chrome, "document.getElementById('stop').hidden")
    # Back is what was shown before: from a sample the samples, from those the text.
    chrome.find_elements("css selector", ".sample button")[2].click()
    wait_for(chrome, texts[2])
    assert "seed=0&" in chrome.current_url
    chrome.back()
    wait_until(chrome, "document.getElementById('status').textContent === 'Done: four samples.'")
    assert chrome.execute_script(f"return {found}") == texts
    assert chrome.find_element("id", "copy-link").is_displayed()
    link = chrome.current_url
    chrome.back()
    wait_for(chrome, lm.generate("First", 9))
    assert not chrome.find_element("id", "samples-card").is_displayed()
    # The link holds the samples.
    chrome.get("about:blank")
    chrome.get(link)
    wait_until(chrome, f"{found}.length === 4 && {found}.every(text => text.length === 30)")
    assert chrome.execute_script(f"return {found}") == texts
    wait_until(chrome, "document.getElementById('stop').hidden")
    click(chrome, "back-to-text")
    assert "seed" not in chrome.current_url and chrome.find_element("id", "empty").is_displayed()


def test_a_server_that_takes_few_texts_writes_the_samples_in_turn(chrome, lm):
    chrome.execute_script(
        "window.writing = 0; window.refused = 0; window.fetched = fetch;"
        "window.fetch = async (...all) => {"
        "  if (writing) { refused += 1; return new Response('{}', {status: 429}); }"
        "  writing += 1;"
        "  const text = await (await fetched(...all)).text();"
        "  writing -= 1;"
        "  return new Response(text);"
        "};"
    )
    fill(chrome, prompt="First", length=25)
    click(chrome, "compare")
    wait_until(chrome, "document.getElementById('status').textContent === 'Done: four samples.'")
    found = "return [...document.querySelectorAll('.sample-text')].map(e => e.textContent)"
    assert chrome.execute_script(found) == [lm.generate("First", 25, seed=i) for i in range(4)]
    assert chrome.execute_script("return refused") >= 3


def test_a_newline_takes_no_room(address, lm):
    """A line that fills the width of the text breaks once."""
    with chromium(375, 800) as chrome:
        chrome.get(address)
        rows = (
            "const height = e => e.getBoundingClientRect().height;"
            "return Math.round(height(document.querySelector('#text .line')) /"
            " parseFloat(getComputedStyle(document.getElementById('text')).lineHeight))"
        )
        fill(chrome, prompt="e" * 60, length=1)
        generate(chrome, lm.generate("e" * 60, 1))
        width = chrome.execute_script(
            "const nodes = [...document.querySelectorAll('#text .character')];"
            "const top = e => e.getBoundingClientRect().top;"
            "return nodes.findIndex(e => top(e) > top(nodes[0]) + 5)"
        )
        assert 20 < width < 60
        for _ in ("plain", "coloured"):
            for n, expected in ((width, 1), (width + 1, 2)):
                fill(chrome, prompt="e" * n + "\nab", length=1)
                generate(chrome, lm.generate("e" * n + "\nab", 1))
                assert chrome.execute_script(rows) == expected
            click(chrome, "colour")
            assert chrome.execute_script("return document.documentElement.scrollWidth") == 375


def test_copies_of_the_training_text_are_underlined(chrome, lm, text):
    copied = text[200:240]
    fill(chrome, prompt=copied, length=10)
    expected = lm.generate(copied, 10)
    generate(chrome, expected)
    wait_until(chrome, "document.querySelectorAll('#text .copied').length >= 40")
    script = "return [...document.querySelectorAll('#text .copied')].map(e => +e.dataset.index)"
    indices = chrome.execute_script(script)
    assert indices == list(range(len(indices))) and expected[: len(indices)] in text
    character(chrome, 4).click()
    place = shown(chrome, "copied-place")
    bottom = "return document.getElementById('copied').getBoundingClientRect().bottom"
    wait_until(chrome, "document.querySelector('#distribution li')")
    assert chrome.execute_script(bottom) < 761 and place.startswith("…")
    assert re.search("character 201 on", shown(chrome, "copied-text"))
    assert expected[: len(indices)] in place and text[180:260].strip()[:70] in place
    beginning = text[:30]
    fill(chrome, prompt=beginning, length=1)
    generate(chrome, lm.generate(beginning, 1))
    wait_until(chrome, "document.querySelectorAll('#text .copied').length >= 30")
    character(chrome, 4).click()
    assert shown(chrome, "copied-place").startswith(text[:30])


def test_what_the_form_refuses(chrome, lm):
    fill(chrome, prompt="né \U0001f600 né")
    problem = shown(chrome, "prompt-problem")
    assert "é" in problem and "\U0001f600" in problem and "does not know" in problem
    assert not chrome.find_element("id", "generate").is_enabled()
    fill(chrome, prompt="")
    assert "one character" in shown(chrome, "prompt-problem")
    fill(chrome, prompt="First")
    assert chrome.find_element("id", "generate").is_enabled()
    wrong = {"temperature": "-1", "top_k": "0", "top_p": "1.5", "min_p": "2"}
    wrong |= {"seed": 2**32, "length": "many"}
    right = {"temperature": "0", "top_k": "", "top_p": "", "min_p": ""}
    right |= {"seed": 2**32 - 1, "length": 20}
    for name, value in wrong.items():
        fill(chrome, **{name: value})
        assert "must be" in shown(chrome, "options-problem"), name
        assert not chrome.find_element("id", "generate").is_enabled()
        fill(chrome, **{name: right[name]})
        assert shown(chrome, "options-problem") == "", name
    generate(chrome, lm.generate("First", 20, temperature=0))
    fill(chrome, temperature="x")
    assert shown(chrome, "status") == ""  # not "Done" beside what is wrong
    fill(chrome, temperature="0,8", top_p="0,9")
    assert shown(chrome, "options-problem") == ""
    fill(chrome, length="1,000")
    assert "must be" in shown(chrome, "options-problem")
    fill(chrome, length=20)
    options = {"temperature": 0.8, "top_p": 0.9, "seed": 2**32 - 1}
    generate(chrome, lm.generate("First", 20, **options))


DAMAGES = {
    "the link is cut off": lambda link: link[:-4],
    "seed must be": lambda link: link.replace("seed=5", "seed=x"),
    "seed is missing": lambda link: link.replace("seed=5&", ""),
    "does not know": lambda link: link.replace("prompt=First", "prompt=%E2%82%AC"),
    "not know “\u2068€": lambda link: link.replace("&model", "&change=3.%E2%82%AC&model"),
    "out of order": lambda link: link.replace("&model", "&change=300.a&model"),
    "samples must be 4": lambda link: link.replace("&model", "&samples=5&model"),
    "x is not known": lambda link: link + "&x=1",
}


def test_a_damaged_link_loads_nothing(chrome, lm):
    fill(chrome, prompt="First", seed=5, length=12)
    generate(chrome, lm.generate("First", 12, seed=5))
    link = chrome.current_url
    for problem, change in DAMAGES.items():
        assert change(link) != link
        chrome.get("about:blank")
        chrome.get(change(link))
        wait_until(chrome, "!document.getElementById('problem').hidden")
        assert problem in shown(chrome, "problem-text")
        assert shown(chrome) == ""
        assert chrome.find_element("id", "seed").get_attribute("value") == "0"


def test_the_address_changes_what_is_shown(chrome, lm):
    fill(chrome, prompt="First", length=12)
    generate(chrome, lm.generate("First", 12))
    link = chrome.current_url.replace("seed=0", "seed=7").replace("length=12", "length=15")
    chrome.execute_script("location.href = arguments[0]", link)
    wait_for(chrome, lm.generate("First", 15, seed=7))
    assert chrome.find_element("id", "seed").get_attribute("value") == "7"
    shorter = link.replace("length=15", "length=9")
    chrome.execute_script("location.href = arguments[0]", shorter)
    wait_for(chrome, lm.generate("First", 9, seed=7))
    chrome.back()
    wait_for(chrome, lm.generate("First", 15, seed=7))
    chrome.back()
    wait_for(chrome, lm.generate("First", 12))
    chrome.back()  # before the first text
    wait_until(chrome, "document.getElementById('text').hidden")
    assert shown(chrome) == ""


def test_a_link_of_another_model_says_so(chrome, lm):
    fill(chrome, prompt="First", length=12)
    generate(chrome, lm.generate("First", 12))
    link = re.sub("model=run[.].{8}", "model=other.01234567", chrome.current_url)
    chrome.get("about:blank")
    chrome.get(link)
    wait_for(chrome, lm.generate("First", 12))
    wait_until(chrome, "!document.getElementById('problem').hidden")
    assert "another model (other): its text may differ" in shown(chrome, "problem-text")
    # A page whose weights are rounded has another mark.
    rounded = chrome.execute_script(f"{bundle('link.js')} return modelMark('float16')")
    chrome.get("about:blank")
    chrome.get(link.replace("other.01234567", rounded))
    wait_until(chrome, "!document.getElementById('problem').hidden")
    assert "other (rounded) weights of run: its text" in shown(chrome, "problem-text")


def test_the_link_is_copied_also_where_the_clipboard_is_closed(chrome, lm):
    fill(chrome, prompt="First", length=12)
    generate(chrome, lm.generate("First", 12))
    chrome.execute_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    click(chrome, "copy-link")
    assert shown(chrome, "status") == "The link is copied."
    assert chrome.execute_script("return document.activeElement.id") == "copy-link"
    fill(chrome, prompt="")
    chrome.find_element("id", "prompt").send_keys("\ue009v")  # Ctrl+V
    assert chrome.find_element("id", "prompt").get_attribute("value") == chrome.current_url


def test_keys_alone_are_enough(chrome, lm):
    fill(chrome, prompt="First\nab", length=20)
    text = lm.generate("First\nab", 20)
    chrome.find_element("id", "length").send_keys(ENTER)
    wait_for(chrome, text)
    chrome.execute_script("document.getElementById('colour').focus()")
    press(chrome, TAB)
    assert chrome.execute_script("return document.activeElement.id") == "text"
    marked = "return Number(document.querySelector('#text .current')?.dataset.index ?? -1)"
    assert chrome.execute_script(marked) == 8  # the first new character
    press(chrome, RIGHT, RIGHT, LEFT)
    assert chrome.execute_script(marked) == 9
    press(chrome, LEFT, LEFT)  # to the b
    for key, place in ((UP, text.index("i")), (DOWN, text.index("b"))):
        press(chrome, key)
        assert chrome.execute_script(marked) == place
    press(chrome, *[LEFT] * 30, *[RIGHT] * 9)
    assert chrome.execute_script(marked) == 9
    press(chrome, ENTER)
    focused = "return document.activeElement.dataset.character"
    assert chrome.execute_script(focused) == text[9]
    press(chrome, ESCAPE)
    assert not chrome.find_element("id", "panel-filled").is_displayed()
    assert chrome.execute_script("return document.activeElement.id") == "text"
    press(chrome, RIGHT, LEFT, ENTER)
    assert chrome.execute_script(focused) == text[9]
    press(chrome, HOME)
    assert chrome.execute_script(focused) == lm.tokenizer.vocabulary[0]
    place = lm.tokenizer.vocabulary.index(another(text[9]))
    press(chrome, *[RIGHT] * place, ENTER)
    branch = written(lm, text[:9] + another(text[9]), 18, 0, start=2)
    wait_for(chrome, branch)
    press(chrome, ESCAPE)
    assert chrome.execute_script(marked) == -1
    assert not chrome.find_element("id", "panel-filled").is_displayed()


def test_errors_leave_the_text_and_offer_to_try_again(chrome, lm):
    text = lm.generate("First", 20)
    fill(chrome, prompt="First", length=20)
    generate(chrome, text)
    conditions = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    chrome.execute_cdp_cmd("Network.enable", {})
    chrome.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)
    fill(chrome, seed=1)
    click(chrome, "generate")
    wait_until(chrome, "!document.getElementById('problem').hidden")
    assert "does not answer" in shown(chrome, "problem-text")
    assert shown(chrome) == text and "seed=0&" in chrome.current_url
    conditions |= {"offline": False, "downloadThroughput": -1, "uploadThroughput": -1}
    chrome.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)
    click(chrome, "retry")
    wait_for(chrome, lm.generate("First", 20, seed=1))
    assert not chrome.find_element("id", "problem").is_displayed()
    assert all("ERR_INTERNET_DISCONNECTED" in error for error in console_errors(chrome))


def test_a_busy_server_and_a_broken_connection(chrome, lm):
    text = lm.generate("First", 40)
    fill(chrome, prompt="First", length=40)
    answer = "new Response(arguments[0], {status: arguments[1], headers: {'Retry-After': '3'}})"
    pretend = f"const answer = {answer}; window.fetched = fetch; window.fetch = async () => answer"
    chrome.execute_script(pretend, '{"error": {"message": "too many"}}', 429)
    click(chrome, "generate")
    wait_until(chrome, "!document.getElementById('problem').hidden")
    assert "busy. Try again in 3 s." in shown(chrome, "problem-text")
    assert shown(chrome) == "" and "#" not in chrome.current_url
    token = {"tokens": [text[5]], "top_logprobs": [{text[5]: -0.5}]}
    event = {"choices": [{"logprobs": token, "finish_reason": None}]}
    chrome.execute_script(pretend, f"data: {json.dumps(event)}\n\n", 200)
    click(chrome, "retry")
    wait_until(chrome, "!document.getElementById('problem').hidden")
    assert "was lost" in shown(chrome, "problem-text")
    assert shown(chrome) == text[:6] and "length=1&" in chrome.current_url
    chrome.execute_script("location.reload()")  # brings the real server back
    wait_for(chrome, text[:6])
    fill(chrome, length=39)
    click(chrome, "continue")
    wait_for(chrome, text)


def test_of_a_large_vocabulary_only_what_the_server_tells_is_kept(chrome):
    vocabulary = "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))
    top = {vocabulary[i]: -i / 100 - 0.5 for i in (4000, 17, 2500)} | {vocabulary[3]: -9999}
    token = {"tokens": [vocabulary[17]], "top_logprobs": [top]}
    event = {"choices": [{"logprobs": token, "finish_reason": "length"}]}
    script = """
        const [vocabulary, event, done] = arguments, tokens = [];
        window.fetch = async () => new Response(`data: ${event}\\n\\n`);
        makeBackend({ ...JSON.parse($("data").textContent), vocabulary })
          .generate({ prompt: "", maxTokens: 1 }, (more) => tokens.push(...more))
          .then(() => done([[...tokens[0].logProbs.ids], [...tokens[0].logProbs.values]]));
    """
    script = bundle("server.js") + script
    kept, values = chrome.execute_async_script(script, vocabulary, json.dumps(event))
    assert kept == [17, 2500, 4000]
    assert values == pytest.approx([-0.67, -25.5, -40.5], rel=1e-6)
    chances = "{ title: '', character: 'e', note: '', logProbs: { ids: [1, 2], values: [-1, -2] } }"
    chrome.execute_script(f"{bundle('panel.js')} distributionPanel().show({chances})")
    assert "Only the 2 most probable of" in shown(chrome, "panel-note")


def test_the_same_settings_write_the_same_text(chrome, lm):
    fill(chrome, prompt="First", length=20)
    generate(chrome, lm.generate("First", 20))
    click(chrome, "generate")
    assert "same seed writes the same text" in shown(chrome, "status")
    click(chrome, "dice")
    seed = int(chrome.find_element("id", "seed").get_attribute("value"))
    assert 0 < seed < 2**32
    assert "Generate uses them" in shown(chrome, "settings-note")
    generate(chrome, lm.generate("First", 20, seed=seed))
    assert len(versions(chrome)) == 2
    fill(chrome, length=9)
    generate(chrome, lm.generate("First", 9, seed=seed))
    assert len(versions(chrome)) == 2


@pytest.mark.parametrize(("width", "height"), [(900, 700), (667, 375)])
def test_in_a_narrow_window_the_chances_are_beside_the_text(address, lm, width, height):
    with chromium(width, height) as chrome:
        chrome.get(address)
        fill(chrome, prompt="First", length=30)
        generate(chrome, lm.generate("First", 30))
        chrome.execute_script("document.getElementById('text').scrollIntoView()")
        point_at(chrome, character(chrome, 7))
        assert chrome.find_element("id", "panel-filled").is_displayed()
        box = "return arguments[0].getBoundingClientRect()[arguments[1]]"
        right = chrome.execute_script(box, chrome.find_element("id", "text-card"), "right")
        assert right <= chrome.execute_script(box, chrome.find_element("id", "panel"), "left")
        scroll = "return document.documentElement.scrollWidth"
        assert chrome.execute_script(scroll) <= width


def test_firefox_shows_the_same_text_and_chances(address, lm, tmp_path):
    with firefox(tmp_path) as fox:
        fox.navigate(address)
        fill(fox, prompt="First", length=60)
        text = lm.generate("First", 60)
        generate(fox, text)
        character(fox, 20).click()
        assert fox.find_element("id", "panel-filled").is_displayed()
        assert len(fox.find_elements("css selector", "#distribution li")) == lm.tokenizer.vocab_size


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_horizontal_scrolling(address, lm, dark):
    with chromium(375, 800, dark=dark) as chrome:
        chrome.get(address)
        width = "return document.documentElement.scrollWidth"
        assert chrome.execute_script(width) == 375
        assert chrome.find_element("id", "text-card").size["height"] < 200  # there is no text yet
        fill(chrome, prompt="First " + "x" * 100, length=60)
        text = lm.generate("First " + "x" * 100, 60)
        generate(chrome, text)
        click(chrome, "colour")
        tap(chrome, character(chrome, len(text) - 1))
        assert chrome.find_element("id", "panel-filled").is_displayed()
        assert chrome.execute_script(width) == 375
        # What was tapped is still in sight, above the chances.
        box = "return arguments[0].getBoundingClientRect()[arguments[1]]"
        bottom = chrome.execute_script(box, character(chrome, len(text) - 1), "bottom")
        top = chrome.execute_script(box, chrome.find_element("id", "panel"), "top")
        assert bottom <= top
        click(chrome, "panel-close")
        click(chrome, "compare")
        wait_until(chrome, "document.querySelectorAll('.sample').length === 4")
        assert chrome.execute_script(width) == 375
        wait_until(chrome, "document.getElementById('stop').hidden")
        chrome.find_elements("css selector", ".sample button")[3].click()
        wait_for(chrome, lm.generate("First " + "x" * 100, 60, seed=3))
        top = chrome.execute_script(box, chrome.find_element("id", "text-card"), "top")
        assert -1 < top < 800  # pixels are rounded
        script = "return getComputedStyle(document.body)[arguments[0]].match(/\\d+/g).map(Number)"
        paper, ink = (sum(chrome.execute_script(script, c)) for c in ("backgroundColor", "color"))
        assert (paper < ink) == dark and abs(paper - ink) > 500
        assert console_errors(chrome) == []


def test_characters_beyond_the_basic_plane_count_as_one(run_config, tmp_path):
    text = "A \U0001f600 smiles at \U0001f469\u200d\U0001f467. </script> ${x}\n" * 300
    (tmp_path / "smiles.txt").write_text(text)
    run_config.data.path = str(tmp_path / "smiles.txt")
    run_config.train.num_steps = run_config.train.eval_every = 3
    train(run_config.freeze(), tmp_path / "<b>run")
    lm = shakegpt_jax.load(tmp_path / "<b>run")
    prompt = "\U0001f600 \U0001f469"
    expected = lm.generate(prompt, 20)
    with serving(tmp_path / "<b>run") as address, chromium() as chrome:
        chrome.get(address)
        assert chrome.title == "<b>run: one character at a time"
        assert "smiles.txt" in shown(chrome, "about")
        link = urllib.parse.quote_plus(prompt)
        chrome.execute_script(f"document.getElementById('prompt').value = {as_script(prompt)}")
        fill(chrome, length=20)
        click(chrome, "generate")
        wait_until_done(chrome)
        assert link in chrome.current_url
        assert as_written(chrome) == expected
        character(chrome, 5).click()
        choose(chrome, "\U0001f600")
        branch = written(lm, expected[:5] + "\U0001f600", 17, 0, start=3)
        wait_until(chrome, "document.querySelectorAll('#versions button').length === 2")
        wait_until_done(chrome)
        assert as_written(chrome) == branch
        chrome.refresh()
        wait_until_done(chrome)
        assert as_written(chrome) == branch
        assert console_errors(chrome) == []


def as_written(chrome) -> str:
    """Return the text as screen readers get it: signs are not replaced by their names."""
    return shown(chrome, "plain-text")
