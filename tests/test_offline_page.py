"""The page with the model inside, in a real browser without a network."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from browser import chromium, click, console_errors, fill, firefox, go_offline, written

import shakegpt_jax
from shakegpt_jax.web.prompt_page import export_page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lm(finished) -> shakegpt_jax.LanguageModel:
    """Return a model that depends on every character that it sees: its parameters are random."""
    lm = shakegpt_jax.load(finished)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jax.numpy.asarray(rng.normal(0, 0.5, x.shape), x.dtype), lm.params
    )
    return dataclasses.replace(lm, params=params)


@pytest.fixture(scope="module")
def page(lm, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    export_page(lm, str(path), float32=True)
    return path


def open_page(chrome: Any, address: str) -> None:
    go_offline(chrome)
    chrome.get("about:blank")  # so that a link is opened anew
    chrome.get(address)
    assert console_errors(chrome) == []
    assert chrome.execute_script("return performance.getEntriesByType('resource').length") == 0


def wait_for(chrome: Any, name: str, pattern: str) -> str:
    from selenium.webdriver.support.wait import WebDriverWait

    def found(chrome: Any) -> bool:
        return bool(re.search(pattern, chrome.find_element("id", name).text))

    WebDriverWait(chrome, 30).until(found, f"{name}: {chrome.find_element('id', name).text}")
    return chrome.find_element("id", name).text


def wait_for_text(chrome: Any, expected: str) -> None:
    from selenium.common import TimeoutException
    from selenium.webdriver.support.wait import WebDriverWait

    script = "return document.getElementById('plain-text').textContent"
    try:
        WebDriverWait(chrome, 20).until(lambda _: chrome.execute_script(script) == expected)
    except TimeoutException:
        assert chrome.execute_script(script) == expected  # says what differs


def test_firefox_computes_the_same_text(page, lm, tmp_path):
    with firefox(tmp_path) as fox:
        fox.navigate(page.as_uri())
        fill(fox, prompt="To be", temperature=1, seed=3, length=40)
        click(fox, "generate")
        wait_for_text(fox, lm.generate("To be", 40, temperature=1.0, seed=3))


def test_a_text_is_written_stopped_branched_and_linked(page, lm):
    with chromium() as chrome:
        open_page(chrome, page.as_uri())
        assert "character at a time" in chrome.title
        fill(chrome, prompt="To be", temperature=1, seed=3, length=40)
        click(chrome, "generate")
        text = lm.generate("To be", 40, temperature=1.0, seed=3)
        wait_for_text(chrome, text)
        assert wait_for(chrome, "status", "Done") == "Done: 40 characters."
        assert "not in this file" in wait_for(chrome, "text-note", "training text")

        # Click the tenth new character, then the most probable other one.
        chrome.find_element("css selector", '#text [data-index="14"]').click()
        bars = chrome.find_elements("css selector", "#distribution li")
        assert len(bars) == lm.tokenizer.vocab_size
        other = next(
            button
            for button in chrome.find_elements("css selector", "#favourites button")
            if button.get_attribute("data-character") != text[14]
        )
        character = other.get_attribute("data-character")
        other.click()
        branch = written(lm, text[:14] + character, 30, 3, temperature=1, start=10)
        assert branch[15:] != text[15:]
        wait_for_text(chrome, branch)

        open_page(chrome, chrome.current_url)
        wait_for_text(chrome, branch)
        click(chrome, "continue")
        wait_for_text(chrome, written(lm, branch, 40, 3, temperature=1, start=40))

        fill(chrome, length=10_000, top_k=5)
        stop = "setTimeout(() => document.getElementById('stop').click(), 100)"
        chrome.execute_script(f"document.getElementById('generate').click(); {stop}")
        status = wait_for(chrome, "status", "Stopped: ")
        assert int(re.findall(r"[\d,]+", status)[0].replace(",", "")) < 10_000
        assert console_errors(chrome) == []


def test_four_samples_are_written_at_once(page, lm):
    with chromium() as chrome:
        open_page(chrome, page.as_uri())
        fill(chrome, prompt="To be", temperature=0.5, seed=2**32 - 2, length=300)
        click(chrome, "compare")
        wait_for(chrome, "status", "Done: four samples")
        script = "return [...document.querySelectorAll('.sample-text')].map((e) => e.textContent)"
        seeds = [2**32 - 2, 2**32 - 1, 0, 1]
        texts = lm.generate(["To be"] * 4, 300, temperature=0.5, seed=seeds)
        assert chrome.execute_script(script) == texts
        assert console_errors(chrome) == []


def test_the_page_may_connect_to_nothing(page):
    script = "fetch('data:,').then(() => arguments[0](''), (error) => arguments[0](error.name))"
    with chromium() as chrome:
        open_page(chrome, page.as_uri())
        assert chrome.execute_async_script(script) == "TypeError"


def test_a_damaged_file_says_so(page, tmp_path):
    whole = page.read_text()
    place = whole.index('"weights": "') + 1_000
    other = "A" if whole[place] != "A" else "B"
    (tmp_path / "changed.html").write_text(whole[:place] + other + whole[place + 1 :])
    (tmp_path / "cut.html").write_text(whole[: place + 1])
    with chromium() as chrome:
        open_page(chrome, (tmp_path / "changed.html").as_uri())
        assert "The model in this file is damaged." in wait_for(chrome, "problem-text", "damaged")
        click(chrome, "generate")
        wait_for(chrome, "problem-text", "damaged")
        open_page(chrome, (tmp_path / "cut.html").as_uri())
        assert "If this line stays, the page is damaged" in wait_for(chrome, "about", "stays")
