"""Layout and lookup of run folders: `runs/<name>/checkpoints/<step>`."""

import dataclasses
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError

CHECKPOINTS = "checkpoints"  # folder inside a run folder
_METRICS = "metrics.jsonl"  # file inside a run folder
_TRAIN_ONE = "train one: shakegpt train --config cpu"
_DEPTH = 4  # of the search for runs


def checkpoint_steps(workdir: str | Path) -> list[int]:
    """List the steps of a run's checkpoints, intact or corrupt, in ascending order."""
    folder = Path(workdir) / CHECKPOINTS
    found = list(folder.iterdir()) if folder.is_dir() else []
    return sorted(
        int(path.name)
        for path in found
        if re.fullmatch("0|[1-9][0-9]*", path.name) and path.is_dir()
    )


def find_runs(workdirs: Sequence[str], runs: str = "runs", *, started: bool = False) -> list[Path]:
    """Expand folders of runs to their runs, and nothing to the newest run; see `find_run`."""
    found: list[Path] = []
    for workdir in workdirs or [""]:
        is_run = not workdir or _saved(workdir, started)
        inside = [] if is_run else _runs_inside(workdir, started)
        found += inside or [find_run(workdir, runs, started=started)]
    return list({path.resolve(): path for path in found}.values())


def find_run(workdir: str = "", runs: str = "runs", *, started: bool = False) -> Path:
    """Return `workdir` if it is a run folder; if empty, the run below `runs` saved last.

    With `started`, metrics make a run, before there is a checkpoint.
    """
    if not workdir:
        inside = _runs_inside(runs, started)
        if not inside:
            raise UserError(f"no run found under {runs}/; {_TRAIN_ONE}")
        return max(inside, key=lambda run: max(map(_time, _saved(run, started)), default=0))
    if not os.path.isdir(workdir):  # Path.is_dir raises for names that are too long
        raise UserError(f"no such run folder: {workdir}; {_remedy(workdir)}")
    if _saved(workdir, started):
        return Path(workdir)
    if inside := _runs_inside(workdir, started):
        names = ", ".join(str(path.relative_to(workdir)) for path in inside[:20])
        more = f" and {len(inside) - 20} more" if len(inside) > 20 else ""
        raise UserError(f"{workdir} is a folder of runs ({names}{more}); give one of them")
    missing = "metrics" if started else "checkpoints"
    raise UserError(f"{workdir} is not a run folder: it holds no {missing}; {_remedy(workdir)}")


def short_names(workdirs: Iterable[str]) -> dict[str, str]:
    """Map run folders to the parts of their paths in which they differ."""
    workdirs = list(workdirs)
    shared = shared_folder(workdirs)
    parts = [Path(os.path.relpath(workdir, shared)).parts for workdir in workdirs]
    while len({each[-1] for each in parts}) == 1 and all(len(each) > 1 for each in parts):
        parts = [each[:-1] for each in parts]
    return {workdir: str(Path(*each)) for workdir, each in zip(workdirs, parts, strict=True)}


def shared_folder(workdirs: Iterable[str]) -> Path:
    """Return the folder that holds run folders, relative if it lies below this one."""
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in workdirs])
    relative = os.path.relpath(shared)
    return Path(shared if relative.startswith(os.pardir) else relative)


def _saved(workdir: str | Path, started: bool) -> list[Path]:
    """Return what makes a folder a run: its checkpoints, and for `started` its metrics."""
    folder = Path(workdir)
    checkpoints = [folder / CHECKPOINTS / str(step) for step in checkpoint_steps(folder)]
    return checkpoints + ([folder / _METRICS] if started and (folder / _METRICS).is_file() else [])


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # training has replaced the checkpoint
        return 0


def _runs_inside(folder: str, started: bool) -> list[Path]:
    return [path for path in _folders_inside(Path(folder), _DEPTH) if _saved(path, started)]


def _folders_inside(folder: Path, depth: int) -> Iterator[Path]:
    """Yield folders below a folder, in order. Those behind links are not searched further."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # it is missing or not readable
        return
    for entry in entries:
        path, is_link = folder / entry.name, entry.is_symlink()
        if not (os.path.isdir(path) if is_link else entry.is_dir()):
            continue
        if not entry.name.startswith(".") and not _holds_checkpoints(path):
            yield path
            if depth > 1 and not is_link:
                yield from _folders_inside(path, depth - 1)


def _holds_checkpoints(folder: Path) -> bool:
    return folder.name == CHECKPOINTS and bool(checkpoint_steps(folder.parent))


def _remedy(path: str) -> str:
    """Say what to do about a path that is not a run folder."""
    inside = Path(path).parts
    if CHECKPOINTS in inside[-2:]:
        run = Path(*inside[: -1 - inside[::-1].index(CHECKPOINTS)])
        if checkpoint_steps(run):
            return f"it is part of the run {run}; give that"
    if path.endswith(".pt") or os.path.isfile(os.path.join(path, "config.json")):
        return f"import it first: shakegpt import_model {shlex.quote(path)}"
    return _TRAIN_ONE


_FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class RunMetadata:
    """Config, vocabulary and training text of a run."""

    config: Config
    vocabulary: str  # characters of the tokenizer, in order of their ids
    text_sha256: str  # of the training text in UTF-8; empty: unknown

    def to_json(self) -> dict[str, Any]:
        """Return the metadata as a JSON object."""
        return {
            "format_version": _FORMAT_VERSION,
            "config": self.config.to_dict(),
            "vocabulary": self.vocabulary,
            "text_sha256": self.text_sha256,
        }

    @classmethod
    def from_json(cls, metadata: Any) -> Self:
        """Read the result of `to_json`, and check it."""
        version = metadata.get("format_version") if isinstance(metadata, dict) else None
        if type(version) is int and version > _FORMAT_VERSION:
            raise UserError(
                f"it has format version {version}, and this version reads up to "
                f"{_FORMAT_VERSION}; upgrade shakegpt_jax"
            )
        if type(version) is not int or version != _FORMAT_VERSION:
            raise UserError(f"its format_version is {version!r}, not {_FORMAT_VERSION}")
        config = Config.from_dict(metadata.get("config"), recorded=True)
        vocabulary, digest = metadata.get("vocabulary"), metadata.get("text_sha256")
        if not vocabulary or not isinstance(vocabulary, str):
            raise UserError("its vocabulary is not a text, or empty")
        if "".join(sorted(set(vocabulary))) != vocabulary:
            raise UserError("its vocabulary is not sorted, or has repetitions")
        if not isinstance(digest, str) or not re.fullmatch("([0-9a-f]{64})?", digest):
            raise UserError("its text_sha256 is not a SHA-256")
        return cls(config, vocabulary, digest)
