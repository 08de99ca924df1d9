"""Facts about a model that a page shows, as JSON."""

from pathlib import Path
from typing import Any

from shakegpt_jax.data.text import TINY_SHAKESPEARE_SHA256
from shakegpt_jax.errors import UserError
from shakegpt_jax.inference import MAX_NEW_TOKENS, SEED, TEMPERATURE
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.inference.sampler import default_window_stride

# What the page accepts and asks for at most; a server refuses more.
LIMITS = {
    "temperature": 1_000_000,
    "top_k": 2**31 - 1,
    "seed": 2**32 - 1,
    "length": 10_000,  # characters to write at a time
    "text": 50_000,  # characters to write in all
    "log_probs": 2**20,  # in one answer
    "searched": 20_000,  # characters of a text that are compared with the training text
}


def page_facts(lm: LanguageModel) -> dict[str, Any]:
    """Return the facts that the page with a prompt shows and computes with.

    Returns:
        `name` of the run; `vocabulary` in order of ids; `parameters`, `layers`, `heads`, `width`
        and `window` of the model; `window_stride`, the characters dropped when the window is full;
        `step` and validation `loss` of the checkpoint, or None; `prompt`, the default one, or
        empty; `text`, what it was trained on, or empty if that is not known; `defaults` of the
        form, where top-k and top-p are off; `limits`.
    """
    shape = lm.config.model
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
        "prompt": _prompt(lm),
        "text": _text(lm),
        "defaults": {
            "temperature": TEMPERATURE,
            "seed": SEED,
            "length": MAX_NEW_TOKENS,
        },
        "limits": LIMITS,
    }


def _prompt(lm: LanguageModel) -> str:
    try:
        return lm.default_prompt()
    except UserError:  # the training text has moved
        return ""


def _text(lm: LanguageModel) -> str:
    """Return the name of the training text, without the folders of whoever trained on it."""
    if lm.text_sha256 == TINY_SHAKESPEARE_SHA256:
        return "Shakespeare's plays (Tiny Shakespeare)"
    return Path(lm.config.data.path).name
