"""Saving and restoring a run: the only file that imports Orbax.

A run folder holds `metrics.jsonl` and `checkpoints/<step>`; a checkpoint holds the parameters,
the rest of the train state, and as JSON the config, the vocabulary and the validation figures.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any, Literal, Self

from orbax.checkpoint import v1 as ocp

from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError

_FORMAT_VERSION = 1
_FOLDER = "checkpoints"


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
    def from_json(cls, metadata: dict[str, Any]) -> Self:
        """Read what `to_json` made.

        Raises:
            UserError: if it was made by another version of the format.
        """
        if (version := metadata.get("format_version")) != _FORMAT_VERSION:
            raise UserError(f"checkpoint format {version!r}; this version reads {_FORMAT_VERSION}")
        config = Config.from_dict(metadata["config"])
        return cls(config, metadata["vocabulary"], metadata["text_sha256"])


class Checkpoints:
    """The checkpoints of one run folder; a context manager, whose end waits for the saves."""

    def __init__(self, workdir: str | Path, *, keep_latest: int = 0):
        """Open a run folder.

        Args:
            workdir: the run folder.
            keep_latest: to write: the newest so many are kept, and the best by validation
                loss. 0: to read; another process may be training there, nothing is touched.
        """
        self.workdir = Path(workdir)
        policies = ocp.training.preservation_policies
        # Kept apart: a model that overfits would otherwise lose its newest checkpoint, from
        # which it continues, to its best.
        keep = [
            policies.LatestN(keep_latest),
            policies.BestN(
                get_metric_fn=lambda metrics: metrics["loss"],
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        if keep_latest:
            for torn in (self.workdir / _FOLDER).glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(torn)  # left by a process that was killed
        self._checkpointer = ocp.training.Checkpointer(
            (self.workdir / _FOLDER).absolute(),  # Orbax refuses relative paths
            preservation_policy=policies.AnyPreservationPolicy(keep) if keep_latest else None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._checkpointer.close()

    @property
    def _metrics(self) -> dict[int, dict[str, float] | None]:
        """Validation figures by step, ascending; None for one that a signal made."""
        self._checkpointer.wait()
        return {
            found.step: found.metrics
            for found in self._checkpointer.checkpoints
            if _is_finished(self.path(found.step))
        }

    @property
    def latest_step(self) -> int:
        """The newest step that there is a checkpoint of; 0 if there is none."""
        return max(self._metrics, default=0)

    def find(self, step: int | Literal["best", "latest"]) -> int:
        """Turn "best" (by validation loss) or "latest" into a step, or check that one is there.

        Raises:
            UserError: if it is not, or there is none at all.
        """
        metrics = self._metrics
        if not metrics:
            raise UserError(f"{self.workdir} holds no finished checkpoint")
        losses = {step: found["loss"] for step, found in metrics.items() if found}
        if step == "latest" or (step == "best" and not losses):
            return self.latest_step
        if step == "best":
            return min(losses, key=lambda step: losses[step])
        if step not in metrics:
            raise UserError(f"no checkpoint of step {step}; there are: {list(metrics)}")
        return step

    def metrics(self, step: int) -> dict[str, float]:
        """Return the validation figures saved with a step; none if a signal made it."""
        return self._metrics[step] or {}

    def path(self, step: int) -> Path:
        """Return where a step's checkpoint lies."""
        return self.workdir / _FOLDER / str(step)

    def run_info(self, step: int) -> RunInfo:
        """Read the config and the vocabulary of a step."""
        return RunInfo.from_json(self._checkpointer.checkpointables_metadata(step).custom_metadata)

    def save(
        self, step: int, params: Any, rest: Any, metrics: dict[str, float] | None, info: RunInfo
    ) -> None:
        """Start saving; the arrays may be donated or changed as soon as this returns.

        Args:
            step: names the checkpoint.
            params: pytree of arrays, sharded or not.
            rest: pytree of arrays that only training needs.
            metrics: validation figures, `loss` among them, by which the best is known; None if
                there are none.
            info: what loading needs.
        """
        self._checkpointer.save_checkpointables_async(
            step,
            {"params": params, "rest": rest},
            force=True,  # without it, Orbax skips a save while another is under way
            metrics=metrics,
            custom_metadata=info.to_json(),
        )

    def restore(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """Load a step onto the devices that the abstract arrays name.

        Args:
            step: which.
            abstract: `params`, `rest` or both, as pytrees of `ShapeDtypeStruct` with sharding.

        Returns:
            The same with arrays.
        """
        restored = self._checkpointer.load_checkpointables(step, abstract)
        return {name: restored[name] for name in abstract}


def has_checkpoint(workdir: str | Path) -> bool:
    """Tell whether a folder holds a run with at least one finished checkpoint."""
    folder = Path(workdir) / _FOLDER
    return folder.is_dir() and any(map(_is_finished, folder.iterdir()))


def _is_finished(folder: Path) -> bool:
    """Tell a checkpoint from an empty folder, or one that is still being written."""
    return folder.name.isdigit() and (folder / "_CHECKPOINT_METADATA").is_file()


def find_run(workdir: str = "", runs: str = "runs") -> Path:
    """Return the run folder to use.

    Args:
        workdir: a run folder; empty for the newest under `runs`.
        runs: where training puts its runs.

    Raises:
        UserError: if there is none.
    """
    train_one = "train one: python run_train.py --config configs/cpu.py"
    if workdir:
        if not Path(workdir).is_dir():
            raise UserError(f"no such run folder: {workdir}; {train_one}")
        if not has_checkpoint(workdir):
            raise UserError(f"{workdir} is not a run folder: it holds no checkpoints; {train_one}")
        return Path(workdir)
    found = [path for path in Path(runs).glob("*") if path.is_dir() and has_checkpoint(path)]
    if not found:
        raise UserError(f"no run found under {runs}/; {train_one}")
    return max(found, key=lambda path: (path / _FOLDER).stat().st_mtime)
