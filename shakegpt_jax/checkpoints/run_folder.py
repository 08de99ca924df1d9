"""Layout, lookup and lock of run folders: `runs/<name>/checkpoints/<step>`."""

import contextlib
import dataclasses
import fcntl
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
_RUNS = "runs"  # folder of runs, where the newest is looked for
_DEPTH = 4  # of the search for runs


def checkpoint_steps(workdir: str | Path) -> list[int]:
    """List the steps of a run's checkpoints, intact or corrupt, in ascending order."""
    folder = Path(workdir) / CHECKPOINTS
    try:
        found = list(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error
    return sorted(
        int(path.name)
        for path in found
        if re.fullmatch("0|[1-9][0-9]*", path.name) and path.is_dir()
    )


def find_runs(workdirs: Sequence[str], *, started: bool = False) -> list[Path]:
    """Expand folders, each a run or a folder of runs, to runs; without any, the newest in "runs".

    With `started`, metrics make a run, before there is a checkpoint.
    """
    if not workdirs:
        if not (inside := _runs_inside(_RUNS, started)):
            raise UserError(f"no run found in {_RUNS}/, {_DEPTH} folders deep; {_TRAIN_ONE}")
        return [max(inside, key=lambda run: max(map(os.path.getmtime, _records(run, started))))]
    found: list[Path] = []
    for workdir in workdirs:
        if not os.path.isdir(workdir):  # Path.is_dir raises for names that are too long
            raise UserError(f"no such run folder: {workdir}; {_remedy(workdir)}")
        is_run = _records(Path(workdir), started)
        inside = [Path(workdir)] if is_run else _runs_inside(workdir, started)
        if not inside:
            missing = "metrics" if started else "checkpoints"
            raise UserError(
                f"{workdir} is not a run folder: it holds no {missing}; {_remedy(workdir)}"
            )
        found += inside
    return list({path.resolve(): path for path in found}.values())


def find_run(workdir: str = "") -> Path:
    """Return `workdir` if it is a run folder; if empty, the newest run below "runs"."""
    found = find_runs([workdir] if workdir else [])
    if workdir and found != [Path(workdir)]:
        names = ", ".join(str(path.relative_to(workdir)) for path in found)
        raise UserError(f"{workdir} is a folder of runs ({names:.500}); give one of them")
    return found[0]


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


def _records(run: Path, started: bool) -> list[Path]:
    """Return the paths that mark a folder as a run; each save rewrites them."""
    checkpoints = [run / CHECKPOINTS] if checkpoint_steps(run) else []
    return checkpoints + ([run / _METRICS] if started and (run / _METRICS).is_file() else [])


def _runs_inside(folder: str, started: bool) -> list[Path]:
    """List the runs below a folder, each once; what cannot be read is left out."""
    found = []
    for root, names, _ in os.walk(folder, followlinks=True):
        path = Path(root)
        with contextlib.suppress(UserError):
            if _records(path, started):
                found.append(path)
                names[:] = [name for name in names if name != CHECKPOINTS]
        links = {name for name in names if (path / name).is_symlink()}
        loops = {name for name in links if path.resolve().is_relative_to((path / name).resolve())}
        names[:] = [name for name in names if name[0] != "." and name not in loops]
        if len(path.relative_to(folder).parts) == _DEPTH:
            names.clear()
    runs: dict[Path, Path] = {}
    for path in sorted(found, key=lambda path: (path.is_symlink(), path)):
        runs.setdefault(path.resolve(), path)
    return sorted(runs.values())


def _remedy(folder: str) -> str:
    """Say what to do about a path that is not a run folder."""
    path = Path(folder)
    if os.path.isdir(os.path.join(_RUNS, folder, CHECKPOINTS)):
        return f"did you mean {_RUNS}/{folder}?"
    for inside in (path, path.parent):
        if inside.name == CHECKPOINTS and checkpoint_steps(inside.parent):
            return f"it is inside the run {inside.parent}; pass that folder"
    if path.suffix == ".pt" or os.path.isfile(path / "config.json"):
        return f"import it first: shakegpt import_model {shlex.quote(folder)}"
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
        return {"format_version": _FORMAT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, metadata: Any) -> Self:
        """Read the result of `to_json`, and check it."""
        version = metadata.get("format_version") if isinstance(metadata, dict) else None
        if type(version) is not int or version != _FORMAT_VERSION:
            right = f"this shakegpt_jax reads {_FORMAT_VERSION}, a newer one may read more"
            raise UserError(f"its format_version is {version!r}; {right}")
        config = Config.from_dict(metadata.get("config"), recorded=True)
        vocabulary, digest = metadata.get("vocabulary"), metadata.get("text_sha256")
        if not vocabulary or not isinstance(vocabulary, str):
            raise UserError("its vocabulary is empty or not a string")
        if "".join(sorted(set(vocabulary))) != vocabulary:
            raise UserError("its vocabulary is unsorted or has duplicates")
        if not isinstance(digest, str) or not re.fullmatch("([0-9a-f]{64})?", digest):
            raise UserError("its text_sha256 is not a SHA-256")
        return cls(config, vocabulary, digest)


@contextlib.contextmanager
def run_lock(workdir: str | Path) -> Iterator[None]:
    """Lock a run folder, created if it does not exist, until this process ends, however it ends."""
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        file = lock_path(workdir).open("a+")
    except OSError as error:
        raise UserError(f"cannot write to the run folder {workdir}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"{workdir} is in use by the training process {file.read().strip()}; "
                "wait for it, stop it, or choose another --workdir"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        os.fsync(file.fileno())  # on NFS, the other processes read it
        yield


def lock_path(workdir: str | Path) -> Path:
    """Return the file of a run's lock, which holds the process id of the last run."""
    return Path(workdir) / "lock"
