"""Names and layouts of the parameters of GPT-2 in Hugging Face transformers."""

from collections.abc import Iterator
from typing import NamedTuple


class Gpt2Name(NamedTuple):
    """A parameter here and in `transformers.GPT2LMHeadModel`."""

    path: tuple[str, ...]  # keys in the parameter pytree of `GPT`
    name: str  # in the state dict
    transposed: bool  # whether the matrix there is the transpose of the one here


_EMBEDDING = {"embedding": "weight"}
_LAYER_NORM = {"scale": "weight", "bias": "bias"}
_LINEAR = {"kernel": "weight", "bias": "bias"}  # GPT-2 calls it Conv1D: (in, out), as in Flax
_BLOCK = {
    "ln_1": _LAYER_NORM,
    "attn.c_attn": _LINEAR,
    "attn.c_proj": _LINEAR,
    "ln_2": _LAYER_NORM,
    "mlp.c_fc": _LINEAR,
    "mlp.c_proj": _LINEAR,
}


def gpt2_names(n_layer: int) -> Iterator[Gpt2Name]:
    """Yield every parameter of a model with `n_layer` blocks once."""
    yield from _module("wte", "wte", _EMBEDDING)
    yield from _module("wpe", "wpe", _EMBEDDING)
    for i in range(n_layer):
        for name, parameters in _BLOCK.items():
            yield from _module(f"block_{i}.{name}", f"h.{i}.{name}", parameters)
    yield from _module("ln_f", "ln_f", _LAYER_NORM)
    yield Gpt2Name(("lm_head", "kernel"), "lm_head.weight", transposed=True)


def _module(path: str, name: str, parameters: dict[str, str]) -> Iterator[Gpt2Name]:
    for here, there in parameters.items():
        full_path = (*path.split("."), here)
        yield Gpt2Name(full_path, f"transformer.{name}.{there}", transposed=False)
