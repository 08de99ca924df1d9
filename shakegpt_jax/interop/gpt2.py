"""The parameters of GPT-2 in PyTorch: names, layouts, and the order of the characters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shakegpt_jax.config import ModelConfig, require_known_fields
from shakegpt_jax.errors import UserError
from shakegpt_jax.model.gpt import abstract_params

ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu_exact": "gelu"}  # their names in transformers
SHAPE = ("n_layer", "n_head", "n_embd", "block_size")
HEAD = "lm_head.weight"
BUFFERS = (".attn.bias", ".attn.masked_bias")  # ends of the names of causal masks

_KNOWN = {*SHAPE, "dropout", "init_stddev", "compute_dtype", "remat", "activation"}


def gpt2_names(config: ModelConfig, params: Any) -> dict[str, tuple[str, ...]]:
    """Map the names in a state dict of GPT-2 to paths in the parameters of `GPT`.

    Raises:
        UserError: if the model has a field that GPT-2 does not have.
    """
    require_known_fields(config, _KNOWN, "GPT-2")
    names = {}
    for path in flatten_dict(params):
        parameter = "bias" if path[-1] == "bias" else "weight"
        name = ".".join((*path[:-1], parameter)).replace("block_", "h.")
        names[name if name == HEAD else f"transformer.{name}"] = path
    return names


def read_params(
    arrays: Mapping[str, np.ndarray],
    config: ModelConfig,
    characters: str,
    source: str | Path,
    *,
    torch_linear: bool = False,
) -> Any:
    """Build the parameters of `GPT` from a state dict of GPT-2.

    Args:
        arrays: float32, without the causal masks. Without any bias, all of them are zero.
        config: shape of the model.
        characters: the vocabulary in the order of the arrays; the result has it sorted.
        source: file name for error messages.
        torch_linear: matrices are (out, in), as in `torch.nn.Linear`, not (in, out) as in GPT-2.
    """
    abstract = abstract_params(config, len(characters))
    names, shapes = gpt2_names(config, abstract), flatten_dict(abstract)
    biased = any(name.endswith(".bias") for name in arrays)
    used = {name for name in names if biased or not name.endswith(".bias")}
    if different := used ^ arrays.keys():
        problem = "has an unknown" if different <= arrays.keys() else "lacks"
        name = min(different - arrays.keys() or different)
        raise UserError(f"{source} {problem} {name:.80}, so it is not a GPT-2 of its config")
    order = np.argsort([ord(c) for c in characters])
    params = {}
    for name, path in names.items():
        expected = shapes[path].shape
        if name not in used:
            params[path] = np.zeros(expected, np.float32)
            continue
        values = arrays[name]
        if transposed := name == HEAD or (torch_linear and path[-1] == "kernel"):
            expected = expected[::-1]
        if values.shape != expected:
            right = f"its config needs {expected}"
            raise UserError(f"{source}: {name} has the shape {values.shape}; {right}")
        if not np.isfinite(values).all():
            raise UserError(f"{source}: {name} has values that are not finite")
        if path[0] in ("wte", "lm_head"):  # a row for each character
            values = values[order]
        params[path] = np.ascontiguousarray(values.T if transposed else values)
    return unflatten_dict(params)
