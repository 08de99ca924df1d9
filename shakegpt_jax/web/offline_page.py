"""The page with a prompt and the model inside: one file that needs no server and no network."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from shakegpt_jax.config import require_known_fields
from shakegpt_jax.errors import UserError
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.model.gpt import LAYER_NORM_EPSILON
from shakegpt_jax.web.page import MODEL_FIELDS, encode_array, write_page
from shakegpt_jax.web.serving_page import page_facts, prompt_page

MAX_PARAMETERS = 20_000_000  # with more, a browser writes fewer than about 30 characters/s


def export_page(lm: LanguageModel, path: str, *, float32: bool = False) -> dict[str, int]:
    """Write the page to a file; return its size in bytes by its name.

    It may connect to nothing, and computes in float32 or better. The weights are rounded to
    float16, which halves the page, unless `float32` keeps them. Raises a UserError if the model is
    too large for a page, or the page could not compute what it computes.
    """
    if lm.n_params > MAX_PARAMETERS:
        raise UserError(
            f"the model has {lm.n_params:,} parameters; a page can hold {MAX_PARAMETERS:,}, since "
            "a browser is slow with more; shakegpt serve shows the same page"
        )
    facts = page_facts(lm) | {"model": model_data(lm, float32=float32)}
    page, _ = prompt_page(facts, "offline_page.js")
    write_page(page, path)
    return {Path(path).name: Path(path).stat().st_size}


def model_data(lm: LanguageModel, *, float32: bool = False) -> dict[str, Any]:
    """Return what `offline.js` computes with beside the facts; `facts.js` describes it."""
    shape = lm.config.model
    require_known_fields(shape, MODEL_FIELDS, "a page")
    params = {
        name: np.asarray(param).T if name.endswith("/kernel") else np.asarray(param)
        for name, param in flatten_dict(lm.params, sep="/").items()
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
