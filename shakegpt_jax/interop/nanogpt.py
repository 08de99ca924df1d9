"""Import of nanoGPT's `ckpt.pt`, with the characters of its `meta.pkl`.

nanoGPT (Karpathy 2022): `train.py` saves the checkpoint, `data/*_char/prepare.py` the characters.
"""

import math
from pathlib import Path
from typing import Any

from shakegpt_jax.errors import UserError
from shakegpt_jax.interop.imported_model import (
    ImportedModel,
    foreign_metadata,
    is_step,
    read_params,
)
from shakegpt_jax.interop.restricted_pickle import load_pickle
from shakegpt_jax.interop.stored_array import StoredArray, read_bounded
from shakegpt_jax.interop.torch_file import Tensor, TorchFile, open_torch_file

_SHAPE = ("n_layer", "n_head", "n_embd", "block_size")
_LARGEST_META = 2**26  # bytes; a million characters take 30 million
_COMPILED = "_orig_mod."  # prefix of the parameters of a model that torch.compile has wrapped


def read_nanogpt(path: str, meta: str | None) -> ImportedModel:
    """Read a checkpoint of nanoGPT.

    Its GELU is exact since May 2023 and approximate before. The checkpoint does not say which, so
    that it is taken to be exact.

    Args:
        path: `ckpt.pt`.
        meta: `meta.pkl` of the text that it was trained on.

    Raises:
        UserError: if a file is not what it should be, or the two do not belong together.
    """
    with open_torch_file(path) as file:
        content = file.content
        content = content if isinstance(content, dict) else {}
        args, state = content.get("model_args"), content.get("model")
        if not isinstance(args, dict) or not isinstance(state, dict):
            raise UserError(f"{path} is not a checkpoint of nanoGPT: it lacks model or model_args")
        if missing := {*_SHAPE, "vocab_size"} - args.keys():
            raise UserError(f"{path}: model_args lacks {min(missing)}")
        if bad := [name for name, value in args.items() if not isinstance(value, int | float)]:
            raise UserError(f"{path}: model_args has no number for {bad[0]!s:.80}")
        if meta is None:
            raise UserError(
                f"{path} does not hold its characters; pass --meta {_meta_path(content)}"
            )
        characters = read_meta(meta)
        if args["vocab_size"] != len(characters):
            raise UserError(
                f"{path} has {args['vocab_size']!r:.20} tokens and {meta} {len(characters)} "
                "characters; give the meta.pkl that it was trained with"
            )
        fields = {name: args[name] for name in _SHAPE} | {"activation": "gelu_exact"}
        if type(args.get("dropout")) is float:
            fields["dropout"] = args["dropout"]
        step: Any = content.get("iter_num")
        origin = f"nanoGPT, iteration {step if is_step(step) else 'unknown'}"
        step = step if is_step(step) else 1
        metadata = foreign_metadata(fields, characters, step, path)
        arrays = _arrays(file, state, path)
        params = read_params(metadata, arrays, Path(path), characters, torch_linear=True)
        loss = _scalar(file, content.get("best_val_loss"))
    if loss is not None:
        origin += f", whose own best validation loss is {loss:.4f}"
    return ImportedModel(metadata, params, step, None, origin)


def read_meta(path: str) -> str:
    """Read the characters of a `meta.pkl`, in the order of their ids.

    Raises:
        UserError: if the file is not such a table of single characters.
    """
    meta = load_pickle(read_bounded(path, _LARGEST_META), path, allowed={})
    table = meta.get("itos") if isinstance(meta, dict) else None
    if not isinstance(table, dict) or not table:
        raise UserError(f"{path} is not a meta.pkl of nanoGPT: it has no table `itos`")
    characters: list[Any] = [table.get(i) for i in range(len(table))]
    for i, character in enumerate(characters):
        if not isinstance(character, str) or len(character) != 1:
            raise UserError(f"{path}: itos has no single character for the id {i}")
    if len(set(characters)) < len(characters):
        raise UserError(f"{path}: itos repeats a character")
    if "stoi" in meta and meta["stoi"] != {c: i for i, c in enumerate(characters)}:
        raise UserError(f"{path}: stoi and itos contradict each other")
    return "".join(characters)


def _arrays(file: TorchFile, state: dict[Any, Any], path: str) -> dict[str, StoredArray]:
    arrays = {}
    for key, value in state.items():
        name = (key if isinstance(key, str) else "").removeprefix(_COMPILED)
        if name.endswith(".attn.bias"):  # the causal mask, of any type
            continue
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name[:80]!r} in its model is not a tensor")
        arrays[name] = file.array(value, name)
    return arrays


def _scalar(file: TorchFile, value: Any) -> float | None:
    """Read a number or a tensor of one number; None if it is neither, or not finite."""
    if isinstance(value, Tensor) and value.shape == ():
        value = float(file.array(value, "best_val_loss").read())
    return value if type(value) is float and math.isfinite(value) else None


def _meta_path(content: dict[Any, Any]) -> str:
    config = content.get("config")
    name = config.get("dataset") if isinstance(config, dict) else None
    folder = name if isinstance(name, str) and name.isidentifier() else "DATASET"
    return f"data/{folder}/meta.pkl of nanoGPT"
