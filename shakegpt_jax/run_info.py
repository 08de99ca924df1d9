"""What a run is, as its checkpoints' metadata tell, and where runs lie."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, Self

from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError

CHECKPOINTS = "checkpoints"  # the folder in a run folder

_FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What is the same in every checkpoint of a run."""

    config: Config
    vocabulary: str  # the tokenizer's characters, in order of their ids
    text_sha256: str  # of the UTF-8 text it was trained on

    def to_json(self) -> dict[str, Any]:
        """Make the metadata to store."""
        return {
            "format_version": _FORMAT_VERSION,
            "config": self.config.to_dict(),
            "vocabulary": self.vocabulary,
            "text_sha256": self.text_sha256,
        }

    @classmethod
    def from_json(cls, metadata: Any) -> Self:
        """Read what `to_json` made, trusting none of it.

        Raises:
            UserError: if it was made by another version of the format, or is not what any made.
        """
        version = metadata.get("format_version") if isinstance(metadata, dict) else None
        if type(version) is int and version > _FORMAT_VERSION:
            raise UserError(
                f"its format is version {version} and this shakegpt_jax reads {_FORMAT_VERSION}; "
                "a newer one will read it"
            )
        if type(version) is not int or version != _FORMAT_VERSION:
            raise UserError(f"its format_version is {version!r}, not {_FORMAT_VERSION}")
        config = Config.from_dict(metadata.get("config"))
        vocabulary, digest = metadata.get("vocabulary"), metadata.get("text_sha256")
        if not isinstance(vocabulary, str) or "".join(sorted(set(vocabulary))) != vocabulary:
            raise UserError("its vocabulary is not a sorted text without repetitions")
        if not vocabulary or re.search("[\ud800-\udfff]", vocabulary):
            raise UserError("its vocabulary is empty or has lone surrogates")
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise UserError("its text_sha256 is not one")
        return cls(config, vocabulary, digest)


def checkpoint_steps(workdir: str | Path) -> list[int]:
    """List the steps of a run folder's checkpoints, whole or damaged, ascending.

    Raises:
        UserError: if a link leads out of the run folder.
    """
    folder = Path(workdir) / CHECKPOINTS
    found = [path for path in folder.glob("[0-9]*") if re.fullmatch("0|[1-9][0-9]*", path.name)]
    for path in (folder, *found):
        if path.is_symlink():
            raise UserError(f"{path} is a link; a run folder must hold its own files")
    return sorted(int(path.name) for path in found)


def find_run(workdir: str = "", runs: str = "runs") -> Path:
    """Return the run folder to use.

    Args:
        workdir: a run folder; empty for the one under `runs` with the newest checkpoint.
        runs: where training puts its runs.

    Raises:
        UserError: if there is none.
    """
    train_one = "train one: python run_train.py --config configs/cpu.py"
    if workdir:
        if not os.path.isdir(workdir):  # Path's raises for names that are too long
            raise UserError(f"no such run folder: {workdir}; {train_one}")
        if not checkpoint_steps(workdir):
            raise UserError(f"{workdir} is not a run folder: it holds no checkpoints; {train_one}")
        return Path(workdir)
    newest = {
        max((path / CHECKPOINTS / str(step)).stat().st_mtime_ns for step in steps): path
        for path in Path(runs).glob("*")
        if path.is_dir() and (steps := checkpoint_steps(path))
    }
    if not newest:
        raise UserError(f"no run found under {runs}/; {train_one}")
    return newest[max(newest)]
