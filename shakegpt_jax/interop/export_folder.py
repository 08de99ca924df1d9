"""Writing a folder for Hugging Face transformers: all of it or nothing."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

from shakegpt_jax.cli.command import import_extra
from shakegpt_jax.errors import UserError, os_errors_name
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.interop.huggingface import (
    CONFIG,
    RUN_ENTRY,
    WEIGHTS,
    json_files,
    parameters,
    to_json,
)
from shakegpt_jax.interop.model_card import model_card

_CARD = "README.md"
_FILES = {
    _CARD,
    WEIGHTS,
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def check_output(output: str, *, force: bool) -> Path:
    """Check that a folder can be written without losing anything.

    Args:
        output: its path.
        force: whether an earlier export may be replaced.

    Returns:
        Its absolute path.

    Raises:
        UserError: if there is a file, a folder that is not an export, or, without `force`, an
            export.
    """
    folder = Path(os.path.realpath(os.path.expanduser(output)))
    try:
        names = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return folder
    except NotADirectoryError as error:
        raise UserError(f"{output} is not a folder; choose another --output") from error
    except OSError as error:
        raise UserError(f"cannot read {output}: {error.strerror}") from error
    if others := sorted(names if not _has_entry(folder) else names - _FILES):
        raise UserError(
            f"{output} holds {others[0]}, which no export wrote; choose another --output"
        )
    if names and not force:
        raise UserError(f"{output} holds an export already; --force replaces it")
    return folder


def _has_entry(folder: Path) -> bool:
    """Return whether the config in a folder has the entry that `json_files` writes."""
    try:
        return RUN_ENTRY in json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def export_folder(lm: LanguageModel, output: str, *, force: bool = False) -> dict[str, int]:
    """Export a model to a folder that transformers loads.

    The folder is written beside its place and renamed once it is complete.

    Args:
        lm: the model.
        output: the folder.
        force: whether to replace an earlier export.

    Returns:
        The size of each file in bytes, by name.

    Raises:
        UserError: if safetensors is missing, `output` is taken (see `check_output`) or cannot be
            created, or the vocabulary cannot be written in UTF-8.
    """
    safetensors = import_extra("safetensors.numpy", extra="hf")
    folder = check_output(output, force=force)
    step, metrics = lm.step, lm.metrics
    weights = safetensors.save(parameters(lm), {"format": "pt"})  # written in the way of PyTorch
    files = json_files(lm, step, metrics, hashlib.sha256(weights).hexdigest())
    texts = {name: to_json(content) for name, content in files.items()}
    texts[_CARD] = model_card(lm, folder.name, step, metrics)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent)
    except OSError as error:
        raise UserError(f"cannot create {output}: {error.strerror}") from error
    with os_errors_name(output), beside as temporary:
        new = Path(temporary, "new")
        new.mkdir()
        for name, text in texts.items():
            (new / name).write_text(text, encoding="utf-8", errors="replace")
        (new / WEIGHTS).write_bytes(weights)
        sizes = {path.name: path.stat().st_size for path in sorted(new.iterdir())}
        _replace(folder, new, Path(temporary, "old"))
    return sizes


def _replace(folder: Path, new: Path, old: Path) -> None:
    """Rename `new` to `folder`, and what is there to `old`; back again if that fails."""
    if exists := folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if exists:
            old.rename(folder)
        raise
