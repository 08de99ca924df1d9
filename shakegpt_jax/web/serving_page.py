"""The page with a prompt that `serve` shows: the model is asked over HTTP."""

from collections.abc import Sequence
from typing import Any

from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.web.page import render_page
from shakegpt_jax.web.page_facts import page_facts

_STYLES = ("characters.css", "page.css")
# In order; `makeBackend`, which each of the backends defines, comes before them.
_SCRIPTS = (
    "characters.js",
    "distribution.js",
    "link.js",
    "tree.js",
    "writer.js",
    "text_view.js",
    "panel.js",
    "samples.js",
    "controls.js",
    "shown_version.js",
    "chances.js",
    "page.js",
)


def serving_page(lm: LanguageModel) -> tuple[str, str]:
    """Return the page as HTML and its policy: it may connect to its own server alone."""
    return prompt_page(page_facts(lm), ("server.js",), connect="'self'")


def prompt_page(
    data: dict[str, Any], backend: Sequence[str], *, connect: str = "'none'"
) -> tuple[str, str]:
    """Return the page with a prompt as HTML and its policy; see `render_page`.

    Args:
        data: the facts of the page, and what the backend needs.
        backend: JavaScript files in `static` that define `makeBackend`.
        connect: where they may connect to.
    """
    title = f"{data['name']}: one character at a time"
    scripts = (*backend, *_SCRIPTS)
    return render_page("page.html", _STYLES, scripts, title, data, connect=connect)
