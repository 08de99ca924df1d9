"""Checkpoints with the format of nanoGPT, written without torch, and pickles that are not data."""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from shakegpt_jax.config import Config
from shakegpt_jax.model.gpt import GPT, init_params

ARGS = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "dropout": 0.1, "bias": True}


def encode(value: Any, storages: dict[str, bytes]) -> bytes:
    """Return the opcodes of a value, as `torch.save` writes them.

    Bytes are opcodes already; arrays go to `storages`.
    """
    match value:
        case bytes():
            return value
        case dict():
            items = b"".join(encode(x, storages) for pair in value.items() for x in pair)
            return b"}(" + items + b"u"
        case tuple():
            return b"(" + b"".join(encode(x, storages) for x in value) + b"t"
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case bool() | None:
            return {True: b"\x88", False: b"\x89", None: b"N"}[value]
        case int():
            return b"J" + struct.pack("<i", value)
        case float():
            return b"G" + struct.pack(">d", value)
        case np.ndarray():
            key = str(len(storages))
            storages[key] = value.tobytes()
            strides = tuple(n // value.itemsize for n in value.strides)
            return tensor(key, value.size, value.shape, strides, storage=STORAGES[value.dtype.str])
    raise TypeError(type(value))


STORAGES = {"<f4": "Float", "<f2": "Half", "<u2": "BFloat16", "<i8": "Long", "<f8": "Double"}


def tensor(
    key: str,
    size: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int = 0,
    storage: str = "Float",
) -> bytes:
    """Return the opcodes of a tensor."""
    kind = f"ctorch\n{storage}Storage\n".encode()
    pid = encode(("storage", kind, key, "cpu", size), {}) + b"Q"
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = encode((pid, offset, shape, strides, False, hooks), {})
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def write_archive(
    path: Path, pickled: bytes, storages: Mapping[str, bytes] = {}, compression: int = 0
) -> Path:
    """Write the zip archive of `torch.save`."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("ckpt/data.pkl", pickled)
        archive.writestr("ckpt/byteorder", "little")
        for key, content in storages.items():
            archive.writestr(f"ckpt/data/{key}", content)
    return path


def write_checkpoint(path: Path, content: Any) -> Path:
    """Write a checkpoint."""
    storages: dict[str, bytes] = {}
    return write_archive(path, b"\x80\x02" + encode(content, storages) + b".", storages)


def write_meta(path: Path, characters: str) -> Path:
    """Write meta.pkl, as the prepare.py of nanoGPT does."""
    itos = dict(enumerate(characters))
    stoi = {character: i for i, character in itos.items()}
    path.write_bytes(pickle.dumps({"vocab_size": len(itos), "itos": itos, "stoi": stoi}))
    return path


def state_dict(params: Any, n_layer: int, *, bias: bool = True) -> dict[str, np.ndarray]:
    """Return parameters with the names and the layout of nanoGPT; the head is the embedding."""
    state = {
        "transformer.wte.weight": params["wte"]["embedding"],
        "transformer.wpe.weight": params["wpe"]["embedding"],
        "transformer.ln_f.weight": params["ln_f"]["scale"],
        "transformer.ln_f.bias": params["ln_f"]["bias"],
        "lm_head.weight": params["wte"]["embedding"],
    }
    for i in range(n_layer):
        for name in ("ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            module = params[f"block_{i}"]
            for key in name.split("."):
                module = module[key]
            weight = module["scale"] if name.startswith("ln") else np.asarray(module["kernel"]).T
            state[f"transformer.h.{i}.{name}.weight"] = weight
            state[f"transformer.h.{i}.{name}.bias"] = module["bias"]
        state[f"transformer.h.{i}.attn.bias"] = np.ones((1, 1, 8, 8), np.int64)  # the causal mask
    return {
        f"_orig_mod.{name}": np.ascontiguousarray(value)
        for name, value in state.items()
        if bias or not name.endswith(".bias")
    }


def random_params(n_character: int) -> Any:
    """Return random parameters of a model with the shape of ARGS, biases and scales too."""
    rng = np.random.default_rng(0)
    shape = {f"model.{name}": ARGS[name] for name in ("n_layer", "n_head", "n_embd", "block_size")}
    model = GPT(Config().replace(shape).model, n_character)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)


def checkpoint(params: Any, n_character: int) -> dict[str, Any]:
    """Return what a checkpoint with the shape of ARGS holds."""
    state = state_dict(params, ARGS["n_layer"])
    return {
        "model": state,
        "optimizer": {"state": {0: {"exp_avg": state["_orig_mod.lm_head.weight"]}}},
        "model_args": ARGS | {"vocab_size": n_character},
        "iter_num": 250,
        "best_val_loss": np.array(2.5, np.float32),
        "config": {"dataset": "shakespeare_char", "compile": False, "weight_decay": 0.1},
    }
