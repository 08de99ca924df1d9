"""The page with a prompt: the facts that it shows, and the page that asks a server."""

from pathlib import Path
from typing import Any

from shakegpt_jax.data.text import TINY_SHAKESPEARE_SHA256
from shakegpt_jax.errors import UserError
from shakegpt_jax.inference import MAX_NEW_TOKENS, SEED, TEMPERATURE
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.inference.sampler import default_window_stride
from shakegpt_jax.web.page import render_page

# What a page accepts and a server answers, at most.
LIMITS = {
    "temperature": 1_000_000,
    "top_k": 2**31 - 1,
    "seed": 2**32 - 1,
    "length": 10_000,  # characters to write at a time
    "text": 50_000,  # characters to write in all
    "log_probs": 2**20,  # in one answer
    "searched": 20_000,  # characters of a text that are compared with the training text
}


def serving_page(lm: LanguageModel) -> tuple[str, str]:
    """Return the page as HTML and its policy: it may connect to its own server alone."""
    return prompt_page(page_facts(lm), "serving_page.js", connect="'self'")


def prompt_page(facts: dict[str, Any], script: str, *, connect: str = "'none'") -> tuple[str, str]:
    """Return the page with a prompt as HTML and its policy; see `render_page`."""
    title = f"{facts['name']}: one character at a time"
    return render_page("page", script, title, facts, connect=connect)


def page_facts(lm: LanguageModel) -> dict[str, Any]:
    """Return the facts that the page shows and computes with; `facts.js` describes them."""
    shape = lm.config.model
    try:
        prompt = lm.default_prompt()
    except UserError:  # the training text has moved
        prompt = ""
    return {
        "name": lm.name,
        "vocabulary": lm.tokenizer.vocabulary,
        "parameters": lm.n_params,
        "layers": shape.n_layer,
        "heads": shape.n_head,
        "width": shape.n_embd,
        "window": shape.block_size,
        "window_stride": default_window_stride(shape.block_size),
        "step": lm.step,
        "loss": lm.metrics.get("loss"),
        "prompt": prompt,
        "text": "Shakespeare's plays (Tiny Shakespeare)"
        if lm.text_sha256 == TINY_SHAKESPEARE_SHA256
        else Path(lm.config.data.path).name,  # without the folders of whoever trained on it
        "defaults": {"temperature": TEMPERATURE, "seed": SEED, "length": MAX_NEW_TOKENS},
        "limits": LIMITS,
    }
