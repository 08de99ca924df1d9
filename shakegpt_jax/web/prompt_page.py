"""The page with a prompt: its facts, and the page that asks a server or holds the model itself."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from shakegpt_jax.data.text import TINY_SHAKESPEARE_SHA256
from shakegpt_jax.errors import UserError
from shakegpt_jax.inference import MAX_NEW_TOKENS, SEED, TEMPERATURE
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.inference.sampler import default_window_stride
from shakegpt_jax.model.gpt import LAYER_NORM_EPSILON
from shakegpt_jax.model.layers import gpt2_parameters
from shakegpt_jax.web.page import encode_array, render_page, write_page

# Limits that the page and the server share.
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
    return render_page("page", "serving_page.js", _title(lm), page_facts(lm), connect="'self'")


def _title(lm: LanguageModel) -> str:
    return f"{lm.name}: one character at a time"


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


MAX_PARAMETERS = 20_000_000  # with more, a browser writes fewer than about 30 characters/s


def export_page(lm: LanguageModel, path: str, *, float32: bool = False) -> dict[str, int]:
    """Write the page to a file; return its size in bytes by its name.

    It may connect to nothing, and computes in float32 or better. The weights are rounded to
    float16, which halves the page, unless `float32` keeps them.
    """
    if lm.n_params > MAX_PARAMETERS:
        raise UserError(
            f"the model has {lm.n_params:,} parameters; a page can hold {MAX_PARAMETERS:,}, since "
            "a browser is slow with more; shakegpt serve shows the same page"
        )
    facts = page_facts(lm) | {"model": model_data(lm, float32=float32)}
    page, _ = render_page("page", "offline_page.js", _title(lm), facts)
    write_page(page, path)
    return {Path(path).name: Path(path).stat().st_size}


def model_data(lm: LanguageModel, *, float32: bool = False) -> dict[str, Any]:
    """Return what `offline.js` computes with beside the facts; `facts.js` describes it."""
    shape = lm.config.model
    params = {
        name: np.asarray(param).T if name.endswith("/kernel") else np.asarray(param)
        for name, param in gpt2_parameters(shape, lm.params, "the page").items()
    }
    numbers = np.concatenate([param.ravel() for param in params.values()])
    with np.errstate(over="ignore"):
        numbers = numbers.astype("<f4" if float32 else "<f2")
    if not np.isfinite(numbers).all():
        advice = "" if float32 else ", or too large for float16: try --float32"
        raise UserError(f"the model has weights that are not finite numbers{advice}")
    return {
        "weights": encode_array(numbers),
        "sizes": [(name, param.size) for name, param in params.items()],
        "dtype": "float32" if float32 else "float16",
        "checksum": zlib.crc32(numbers.tobytes()),
        "activation": shape.activation,
        "epsilon": LAYER_NORM_EPSILON,
    }
