"""Import of nanoGPT's `ckpt.pt`, with the characters of its `meta.pkl`.

nanoGPT (Karpathy 2022): `train.py` saves the checkpoint, `data/*_char/prepare.py` the characters.
"""

import pickle
import zipfile
from typing import Any

from shakegpt_jax.cli.command import import_extra
from shakegpt_jax.errors import UserError
from shakegpt_jax.interop.gpt2 import BUFFERS, SHAPE, read_params
from shakegpt_jax.interop.imported_run import ImportedModel, foreign_metadata, is_step

_OPTIONAL = {"dropout", "bias"}  # early checkpoints lack them
_COMPILED = "_orig_mod."  # prefix of the parameters of a model that torch.compile has wrapped


def read_nanogpt(path: str, meta: str) -> ImportedModel:
    """Read a `ckpt.pt`, and the `meta.pkl` of the text that it was trained on.

    nanoGPT's GELU is exact since May 2023 and approximate before. A checkpoint does not say which;
    it is taken to be exact.
    """
    characters = read_meta(meta)
    torch = import_extra("torch", extra="nanogpt")
    content = _load_checkpoint(torch, path)
    args, state = content.get("model_args"), content.get("model")
    if not isinstance(args, dict) or not isinstance(state, dict):
        raise UserError(f"{path} is not a checkpoint of nanoGPT: it lacks model or model_args")
    if different := (args.keys() | _OPTIONAL) ^ {*SHAPE, "vocab_size", *_OPTIONAL}:
        problem = "has an unknown" if different <= args.keys() else "lacks"
        name = min(map(str, different - args.keys() or different))
        raise UserError(f"{path}: model_args {problem} {name:.80}")
    if args["vocab_size"] != len(characters):
        raise UserError(
            f"{path} has {args['vocab_size']!r:.20} tokens and {meta} {len(characters)} "
            "characters; give the meta.pkl that it was trained with"
        )
    fields = {name: args[name] for name in (*SHAPE, "dropout") if name in args}
    step: Any = content.get("iter_num")
    origin = f"nanoGPT, iteration {step if is_step(step) else 'unknown'}"
    step = step if is_step(step) else 1
    arrays = {}
    for key, value in state.items():
        name = str(key).removeprefix(_COMPILED)
        if name.endswith(BUFFERS):
            continue
        if not (torch.is_tensor(value) and value.is_floating_point()):
            raise UserError(f"{path}: {name:.80} is not a tensor of floats")
        arrays[name] = value.detach().float().numpy()
    fields |= {"activation": "gelu_exact", "bias": any(name.endswith(".bias") for name in arrays)}
    metadata = foreign_metadata(fields, characters, step, path)
    model, rows = metadata.config.model, {c: i for i, c in enumerate(characters)}
    params = read_params(arrays, model, rows, len(rows), path, torch_linear=True)
    loss: Any = content.get("best_val_loss")
    if isinstance(loss, float) or (torch.is_tensor(loss) and loss.ndim == 0):
        origin += f", whose own best validation loss is {loss:.4f}"
    return ImportedModel(metadata, params, step, None, origin)


def _load_checkpoint(torch: Any, path: str) -> dict[Any, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not compare checksums
        # With mmap, the optimizer state stays on disk.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # many types, those of torch with advice to read it in an unsafe way
        raise UserError(
            f"{path} cannot be read as tensors and plain data ({type(error).__name__}); give a "
            "whole ckpt.pt, as nanoGPT's train.py writes it"
        ) from error
    if damaged:
        raise UserError(f"{path} is corrupt: the checksum of {damaged} differs")
    return content if isinstance(content, dict) else {}


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, texts and containers, without importing anything."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which could execute code")


def read_meta(path: str) -> str:
    """Read the characters of a `meta.pkl`, in the order of their ids."""
    try:
        with open(path, "rb") as file:
            meta = _PlainUnpickler(file).load()
    except Exception as error:  # a corrupt pickle can raise nearly any type
        raise UserError(f"cannot read {path} as plain data: {str(error)[:200]}") from error
    table = meta.get("itos") if isinstance(meta, dict) else None
    if not isinstance(table, dict) or not table:
        raise UserError(f"{path} is not a meta.pkl of nanoGPT: it has no table `itos`")
    characters: list[Any] = [table.get(i) for i in range(len(table))]
    single = {c for c in characters if isinstance(c, str) and len(c) == 1}
    if len(single) < len(characters):
        right = f"it must map the ids 0 to {len(table) - 1} to different single characters"
        raise UserError(f"{path}: itos is {table!r:.60}; {right}")
    return "".join(characters)
