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
from shakegpt_jax.web.page import check_page_path, encode_array, write_page
from shakegpt_jax.web.serving_page import page_facts, prompt_page

MAX_PARAMETERS = 20_000_000  # with more, a browser writes fewer than about 30 characters/s

# Of the model: what model.js computes with, and what matters in training alone.
_FIELDS = {"n_layer", "n_head", "n_embd", "block_size", "activation"}
_FIELDS |= {"dropout", "init_stddev", "compute_dtype", "remat"}
_NORM = ("scale", "bias")
_DENSE = ("kernel", "bias")
_BLOCK = {"ln_1": _NORM, "attn/c_attn": _DENSE, "attn/c_proj": _DENSE}
_BLOCK |= {"ln_2": _NORM, "mlp/c_fc": _DENSE, "mlp/c_proj": _DENSE}
_ACTIVATIONS = ("gelu_tanh", "gelu_exact")


def offline_page(lm: LanguageModel, *, float32: bool = False) -> str:
    """Return the page as HTML. It may connect to nothing.

    Args:
        lm: the model. The page computes in float32 at least, whatever its `compute_dtype`.
        float32: whether to keep the weights as they are; otherwise they are rounded to float16,
            which halves the page.

    Raises:
        UserError: if the model is too large for a page, has a part that the page does not know,
            or weights that float16 cannot hold.
    """
    if lm.n_params > MAX_PARAMETERS:
        raise UserError(
            f"the model has {lm.n_params:,} parameters; a page can hold {MAX_PARAMETERS:,}, since "
            "a browser is slow with more; python -m shakegpt_jax.serve shows the same page"
        )
    facts = page_facts(lm) | {"model": model_data(lm, float32=float32)}
    return prompt_page(facts, "offline_page.js")[0]


def model_data(lm: LanguageModel, *, float32: bool = False) -> dict[str, Any]:
    """Return what `offline.js` computes with beside the facts; `facts.js` describes it."""
    shape = lm.config.model
    require_known_fields(shape, _FIELDS, "a page")
    if shape.activation not in _ACTIVATIONS:
        raise UserError(f"a page does not support config.model.activation {shape.activation!r}")
    params = {
        name: np.asarray(param).T if name.endswith("/kernel") else np.asarray(param)
        for name, param in flatten_dict(lm.params, sep="/").items()
    }
    known = {"wte/embedding", "wpe/embedding", "lm_head/kernel", "ln_f/scale", "ln_f/bias"}
    for i in range(shape.n_layer):
        known |= {f"block_{i}/{layer}/{p}" for layer, names in _BLOCK.items() for p in names}
    if different := known ^ params.keys():
        name = min(different)
        raise UserError(
            f"a page does not support the parameter {name}"
            if name in params
            else f"a page needs the parameter {name}, which the model lacks"
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
