"""The page with a prompt and the model inside: one file that needs no server and no network."""

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from shakegpt_jax.errors import UserError
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.model.gpt import LAYER_NORM_EPSILON
from shakegpt_jax.web.page import check_page_path, encode_array, write_page
from shakegpt_jax.web.page_facts import page_facts
from shakegpt_jax.web.serving_page import prompt_page

MAX_PARAMETERS = 20_000_000  # with more, a browser writes fewer than about 30 characters/s

MODEL_SCRIPTS = ("base64.js", "threefry.js", "sampling.js", "weights.js", "model.js", "offline.js")


def offline_page(lm: LanguageModel, *, float32: bool = False) -> str:
    """Return the page as HTML. It may connect to nothing.

    Args:
        lm: the model. The page computes in float32 at least, whatever its `compute_dtype`.
        float32: whether to keep the weights as they are; otherwise they are rounded to float16,
            which halves the page.

    Raises:
        UserError: if the model is too large for a page, or has weights that float16 cannot hold.
    """
    if lm.n_params > MAX_PARAMETERS:
        raise UserError(
            f"the model has {lm.n_params:,} parameters; a page can hold {MAX_PARAMETERS:,}, since "
            "a browser is slow with more; python -m shakegpt_jax.serve shows the same page"
        )
    data = page_facts(lm) | {"model": model_data(lm, float32=float32)}
    page, _ = prompt_page(data, MODEL_SCRIPTS)
    return page


def model_data(lm: LanguageModel, *, float32: bool = False) -> dict[str, Any]:
    """Return what `makeBackend` in `offline.js` computes with, beside the facts of the page.

    Returns:
        `weights`, all numbers in base64; `sizes`, the name and the count of numbers of each
        parameter in their order; `dtype`; `checksum`, the CRC-32 of their bytes; `activation`;
        `epsilon` of LayerNorm. Linear layers have one row per output.

    Raises:
        UserError: see `offline_page`.
    """
    params = {
        "/".join(path): np.asarray(param).T if path[-1] == "kernel" else np.asarray(param)
        for path, param in flatten_dict(lm.params).items()
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
        "activation": lm.config.model.activation,
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
    """Write the page to a file; returns its size in bytes by its name.

    Raises:
        UserError: if the file cannot be written, or is there already without `force`; see
            `offline_page` for others.
    """
    page = offline_page(lm, float32=float32)
    check_new_page(path, force=force)
    write_page(page, path)
    return {Path(path).name: Path(path).stat().st_size}
