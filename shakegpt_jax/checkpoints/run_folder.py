"""Layout and lookup of run folders: `runs/<name>/checkpoints/<step>`."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from shakegpt_jax.errors import UserError

CHECKPOINTS = "checkpoints"  # folder inside a run folder


def checkpoint_steps(workdir: str | Path) -> list[int]:
    """List the steps of a run's checkpoints, intact or corrupt, in ascending order.

    Raises:
        UserError: if the folder cannot be read.
    """
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


def find_runs(workdirs: Sequence[str], runs: str = "runs") -> list[Path]:
    """Expand paths to run folders; a folder of runs expands to its runs.

    Args:
        workdirs: run folders, and folders of run folders; empty for the newest run.
        runs: the folder that holds the runs.

    Raises:
        UserError: if a path is neither.
    """
    found: list[Path] = []
    for workdir in workdirs or [""]:
        is_run = not workdir or checkpoint_steps(workdir) or not _runs_inside(workdir)
        found += [find_run(workdir, runs)] if is_run else _runs_inside(workdir)
    return list({path.resolve(): path for path in found}.values())


def short_names(workdirs: Iterable[str]) -> dict[str, str]:
    """Map run folders to their paths inside of the folder that they share."""
    paths = {workdir: os.path.abspath(workdir) for workdir in workdirs}
    shared = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
    return {workdir: os.path.relpath(path, shared) for workdir, path in paths.items()}


def _runs_inside(folder: str) -> list[Path]:
    inside = sorted(Path(folder).glob("*/")) if os.path.isdir(folder) else []
    return [path for path in inside if checkpoint_steps(path)]


def find_run(workdir: str = "", runs: str = "runs") -> Path:
    """Return the run folder to use.

    Args:
        workdir: a run folder; empty for the one under `runs` with the newest checkpoint.
        runs: the folder that holds the runs.

    Raises:
        UserError: if there is none.
    """
    train_one = "train one: python run_train.py --config configs/cpu.py"
    if workdir:
        if not os.path.isdir(workdir):  # Path.is_dir raises for names that are too long
            raise UserError(f"no such run folder: {workdir}; {train_one}")
        if not checkpoint_steps(workdir) and (runs_inside := _runs_inside(workdir)):
            names = ", ".join(path.name for path in runs_inside)
            raise UserError(f"{workdir} is a folder of runs ({names}); give one of them")
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
