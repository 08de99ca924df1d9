"""Real browsers without a window, from Debian: Chromium, driven by selenium, and Firefox.

For pages with a prompt there is also the text that they should write.
"""

import contextlib
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import shakegpt_jax

_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


@contextlib.contextmanager
def chromium(width: int = 1280, height: int = 900, *, dark: bool = False) -> Iterator[Any]:
    """Start Chromium and yield its selenium driver; skips the test where there is none.

    Args:
        width: of the page in CSS pixels, also below the 500 of the smallest window.
        height: of the page.
        dark: whether the page is told that the user prefers dark colours.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs pip install selenium")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("needs apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in _FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        chrome.set_page_load_timeout(60)
        emulate(chrome, width, height, dark=dark)
        yield chrome
    finally:
        chrome.quit()


@contextlib.contextmanager
def firefox(profile: Path) -> Iterator[Any]:
    """Start Firefox and yield Mozilla's own driver, whose methods are much like selenium's."""
    reason = "needs pip install marionette_driver"
    marionette = pytest.importorskip("marionette_driver.marionette", reason=reason)
    if not (binary := shutil.which("firefox")):
        pytest.skip("needs apt-get install firefox-esr")
    port = marionette.Marionette.check_port_available(0)
    (profile / "user.js").write_text(f'user_pref("marionette.port", {port});')
    command = [binary, "--headless", "--marionette", "--no-remote", "--profile", str(profile)]
    with (
        subprocess.Popen(command, stderr=subprocess.DEVNULL) as process,
        warnings.catch_warnings(action="ignore", category=ResourceWarning),  # its open sockets
    ):
        try:
            fox = marionette.Marionette(port=port)
            fox.start_session()
            yield fox
            fox.delete_session()
        finally:
            process.terminate()


def emulate(chrome: Any, width: int, height: int, *, dark: bool = False) -> None:
    """Set the size and the colour scheme of a tab; see `chromium`."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def go_offline(chrome: Any) -> None:
    """Cut the page off the network."""
    chrome.execute_cdp_cmd("Network.enable", {})
    conditions = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    chrome.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)


def console_errors(chrome: Any) -> list[str]:
    """Return the errors and warnings on the console since the last call."""
    return [
        entry["message"]
        for entry in chrome.get_log("browser")
        if entry["level"] in ("WARNING", "SEVERE")
    ]


def fill(chrome: Any, **values: object) -> None:
    """Type values into the fields of these names."""
    for name, value in values.items():
        field = chrome.find_element("id", name)
        field.clear()
        field.send_keys(str(value))


def click(chrome: Any, name: str) -> None:
    """Click the element with an id."""
    chrome.find_element("id", name).click()


def written(
    lm: shakegpt_jax.LanguageModel,
    prompt: str,
    n: int,
    seed: int,
    *,
    temperature: float = 0.8,
    start: int = 0,
) -> str:
    """Continue a prompt by `n` characters, one at a time, with the noise from index `start` on."""
    key = jax.random.key(seed)
    n_time = lm.config.model.block_size
    stride = min(n_time, n_time - n_time // 2 + 1)  # the window is filled again with its rest
    text = prompt
    for index in range(start, start + n):
        over = max(0, len(text) - n_time)
        context = text[-(n_time - stride + 1 + (over - 1) % stride) :] if over else text
        logits = np.asarray(lm.logits(context))[-1].astype(np.float64)
        noise = jax.random.gumbel(jax.random.fold_in(key, index), (len(logits),))
        text += lm.tokenizer.vocabulary[int(np.argmax(logits / temperature + np.asarray(noise)))]
    return text
