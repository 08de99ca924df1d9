"""A model of another tool, and the run folder that holds it."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shakegpt_jax.checkpoints.reader import Metrics
from shakegpt_jax.checkpoints.run_folder import RunMetadata
from shakegpt_jax.checkpoints.writer import CheckpointWriter
from shakegpt_jax.config import Config, ModelConfig
from shakegpt_jax.errors import SaveError, UserError
from shakegpt_jax.interop.gpt2_names import gpt2_names
from shakegpt_jax.interop.stored_array import StoredArray
from shakegpt_jax.model.gpt import abstract_params

# GPT-2 stores its causal mask under these names.
BUFFERS = (".attn.bias", ".attn.masked_bias")


@dataclasses.dataclass(frozen=True, eq=False)
class ImportedModel:
    """A model as a checkpoint holds it, but for the optimizer state."""

    metadata: RunMetadata
    params: Any  # pytree of float32 NumPy arrays
    step: int  # 1 or more; 1 if it is not known
    metrics: Metrics | None  # validation metrics, if this package measured them
    origin: str  # a phrase that says where it is from


def is_step(value: Any) -> bool:
    """Return whether a value can be the step of a checkpoint."""
    return type(value) is int and 1 <= value < 2**31


def foreign_metadata(model: dict[str, Any], vocabulary: str, step: int, name: str) -> RunMetadata:
    """Return the metadata of a model that another tool trained, on an unknown text.

    Args:
        model: fields of `ModelConfig`; what else the config holds are defaults.
        vocabulary: its characters, in any order.
        step: how many steps it was trained for; 1 if that is not known.
        name: of the file with these values, for error messages.

    Raises:
        UserError: if a field has a value that no config accepts.
    """
    try:
        changes = {f"model.{field}": value for field, value in model.items()}
        config = Config().replace(changes | {"train.num_steps": step})
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    return RunMetadata(config, "".join(sorted(vocabulary)), text_sha256="")


def read_params(
    metadata: RunMetadata,
    arrays: Mapping[str, StoredArray],
    source: Path,
    characters: str,
    *,
    torch_linear: bool = False,
) -> Any:
    """Read the parameters of a model from arrays with the names of GPT-2.

    Args:
        metadata: config and vocabulary of the model.
        arrays: by name in the state dict. A linear layer without bias has a bias of zero.
        source: the file of the arrays, for error messages and to bound their size.
        characters: the vocabulary in the order of the source, whose rows of the embedding and of
            the head are brought into the order of ours.
        torch_linear: whether matrices are those of `torch.nn.Linear`, (out, in), rather than
            GPT-2's (in, out).

    Returns:
        The pytree of `init_params`, of NumPy arrays.

    Raises:
        UserError: naming an array that is missing, unknown, of another shape, or not finite.
    """
    config, n_character = metadata.config.model, len(metadata.vocabulary)
    names = {name.name: name for name in gpt2_names(config.n_layer)}
    biased = any(name.endswith(".bias") and name in arrays for name in names)
    used = {k: n for k, n in names.items() if biased or not k.endswith(".bias")}
    found = {key for key in arrays if not key.endswith(BUFFERS)}
    for problem, keys in (("lacks", used.keys() - found), ("has an unknown", found - used.keys())):
        if keys:
            raise UserError(f"{source} {problem} {min(keys)[:80]}, so it is not such a GPT-2 model")
    shapes = _shapes(config, n_character)
    if (size := sum(map(np.prod, shapes.values()))) > source.stat().st_size:
        raise UserError(f"{source} is corrupt: it is too short for {size:,} parameters")
    order = np.argsort([ord(c) for c in characters])
    params = {path: np.zeros(shape, np.float32) for path, shape in shapes.items() if not biased}
    for key, name in used.items():
        stored = arrays[key]
        transposed = name.path[-1] == "kernel" if torch_linear else name.transposed
        expected = shapes[name.path][::-1] if transposed else shapes[name.path]
        if stored.shape != expected:
            raise UserError(
                f"{source}: {key} has the shape {stored.shape}; its config needs {expected}"
            )
        values = stored.read()
        if not np.isfinite(values).all():
            raise UserError(f"{source}: {key} has values that are not finite")
        if name.path[0] in ("wte", "lm_head"):  # a row for each character
            values = values[order]
        params[name.path] = np.ascontiguousarray(values.T if transposed else values)
    return unflatten_dict(params)


def _shapes(config: ModelConfig, n_character: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    params = flatten_dict(abstract_params(config, n_character))
    return {path: param.shape for path, param in params.items()}


def check_new(workdir: str) -> Path:
    """Return the run folder to create.

    Raises:
        UserError: if something is there already.
    """
    folder = Path(workdir).expanduser()
    try:
        exists = folder.exists() or folder.is_symlink()
    except (OSError, ValueError) as error:  # a name too long, a null byte
        raise UserError(f"--workdir {workdir!r:.80} cannot be used: {error}") from error
    if exists:
        raise UserError(f"{workdir} exists already; choose another --workdir, or remove it")
    return folder


def write_run(model: ImportedModel, folder: Path) -> None:
    """Write a run folder with one checkpoint, which has no optimizer state. All of it or nothing.

    Raises:
        UserError: if the folder exists or cannot be created.
        SaveError: if it cannot be written.
    """
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        reason = f"cannot create the run folder {folder}: {error.strerror}"
        raise UserError(f"{reason}; choose another --workdir") from error
    try:
        with CheckpointWriter(folder, 1, _fail) as checkpoints:
            checkpoints.save(model.step, model.params, None, model.metrics, model.metadata)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _fail(message: str) -> NoReturn:
    raise SaveError(message)
