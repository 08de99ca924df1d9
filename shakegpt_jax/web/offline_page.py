"""The page with a prompt and the model inside: one file that needs no server and no network."""

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from shakegpt_jax.config import require_known_fields
from shakegpt_jax.errors import UserError
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.model.gpt import LAYER_NORM_EPSILON
from shakegpt_jax.web.page import MODEL_FIELDS, check_page_path, encode_array, write_page
from shakegpt_jax.web.serving_page import page_facts, prompt_page

MAX_PARAMETERS = 20_000_000  # with more, a browser writes fewer than about 30 characters/s

# What model.js reads and computes.
_PARAMS = {"wte/embedding", "wpe/embedding", "lm_head/kernel", "ln_f/scale", "ln_f/bias"}
_DENSE = ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj")
_BLOCK_PARAMS = [f"{norm}/{each}" for norm in ("ln_1", "ln_2") for each in ("scale", "bias")]
_BLOCK_PARAMS += [f"{dense}/{each}" for dense in _DENSE for each in ("kernel", "bias")]
_ACTIVATIONS = ("gelu_tanh", "gelu_exact")


def offline_page(lm: LanguageModel, *, float32: bool = False) -> str:
    """Return the page as HTML. It may connect to nothing, and computes in float32 or better.

    The weights are rounded to float16, which halves the page, unless `float32` keeps them. Raises a
    UserError if the model is too large for a page, or the page could not compute what it computes.
    """
    if lm.n_params > MAX_PARAMETERS:
        raise UserError(
            f"the model has {lm.n_params:,} parameters; a page can hold {MAX_PARAMETERS:,}, since "
            "a browser is slow with more; shakegpt serve shows the same page"
        )
    facts = page_facts(lm) | {"model": model_data(lm, float32=float32)}
    return prompt_page(facts, "offline_page.js")[0]


def model_data(lm: LanguageModel, *, float32: bool = False) -> dict[str, Any]:
    """Return what `offline.js` computes with beside the facts; `facts.js` describes it."""
    shape = lm.config.model
    require_known_fields(shape, MODEL_FIELDS, "a page")
    if shape.activation not in _ACTIVATIONS:
        raise UserError(f"a page does not support config.model.activation {shape.activation!r}")
    params = {
        name: np.asarray(param).T if name.endswith("/kernel") else np.asarray(param)
        for name, param in flatten_dict(lm.params, sep="/").items()
    }
    blocks = {f"block_{i}/{each}" for i in range(shape.n_layer) for each in _BLOCK_PARAMS}
    if different := (_PARAMS | blocks) ^ params.keys():
        state = "unknown" if min(different) in params else "missing"
        raise UserError(
            f"a page does not support this model: parameter {min(different)} is {state}"
        )
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


def check_new_page(path: str, *, force: bool) -> None:
    """Raise a UserError if a page cannot be written there, or would replace one without `force`."""
    check_page_path(path)
    if os.path.lexists(path) and not force:
        raise UserError(f"{path} exists; --force replaces it")


def export_page(
    lm: LanguageModel, path: str, *, float32: bool = False, force: bool = False
) -> dict[str, int]:
    """Write the page of `offline_page` to a file; returns its size in bytes by its name."""
    page = offline_page(lm, float32=float32)
    check_new_page(path, force=force)
    write_page(page, path)
    return {Path(path).name: Path(path).stat().st_size}
