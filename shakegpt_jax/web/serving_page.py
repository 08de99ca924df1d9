"""The page with a prompt that `serve` shows: the model is asked over HTTP."""

from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.web.page import render_page
from shakegpt_jax.web.page_facts import page_facts

STYLES = ("characters.css", "page.css")
# In order; `makeBackend`, which each of the backends defines, comes before them.
SCRIPTS = (
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


def serving_page(lm: LanguageModel) -> str:
    """Return the page as HTML. It may connect to the server that it comes from alone."""
    facts = page_facts(lm)
    title = f"{facts['name']}: one character at a time"
    return render_page("page.html", STYLES, ("server.js", *SCRIPTS), title, facts, connect="'self'")
