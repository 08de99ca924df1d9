"""Metrics of evaluation and training: typed rows, and `metrics.jsonl` on disk."""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np

from shakegpt_jax.cli.command import dump_json
from shakegpt_jax.errors import UserError

Callback = Callable[[dict[str, Any]], object]  # gets each row of metrics.jsonl


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Summary of how well a model predicts a text."""

    loss: float  # mean negative log-probability, nats per character
    standard_error: float | None  # of the loss, characters being independent; None: one character
    perplexity: float  # exp(loss)
    bits_per_character: float  # loss / ln 2
    count: int  # characters scored

    @classmethod
    def from_losses(cls, losses: np.ndarray) -> Self:
        """Summarize (count,) losses in nats. Sums are taken in float64."""
        losses = losses.astype(np.float64)
        n, loss = len(losses), float(losses.mean())
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(loss))
        return cls(
            loss=loss,
            standard_error=float(losses.std(ddof=1) / math.sqrt(n)) if n > 1 else None,
            perplexity=perplexity,
            bits_per_character=loss / math.log(2),
            count=n,
        )

    def to_dict(self) -> dict[str, float]:
        """Return the numbers that are known."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsRow:
    """Metrics of the steps since the previous row: a line of metrics.jsonl."""

    step: int  # the last one
    characters_per_second: float
    train_loss: float | None  # mean, nats per character; None if every update was skipped
    learning_rate: float  # of the last step
    gradient_norm: float | None  # mean, before clipping
    skipped_updates: int = 0  # excluded from the means
    evaluation: Evaluation | None = None  # of the validation split
    train_time: float | None  # seconds in training steps: in the file of the run so far, if known
    wall_time: float | None = None  # seconds of the run so far, evaluation and saving included

    def to_json(self) -> dict[str, Any]:
        """Return a flat JSON object, evaluation metrics with the prefix `val_`."""
        row: dict[str, Any] = {}
        for name, value in vars(self).items():
            if name == "evaluation":
                row |= {f"val_{key}": each for key, each in vars(value).items()} if value else {}
            elif name != "skipped_updates" or value:
                row[name] = value
        return row

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """Read a row; raises a ValueError or TypeError if a value is not a finite number."""
        optional = {
            prefix + field.name
            for prefix, kind in (("", cls), ("val_", Evaluation))
            for field in dataclasses.fields(kind)
            if type(None) in get_args(field.type)
        }
        numbers = [v for k, v in row.items() if v is not None or k not in optional]
        finite = all(type(v) in (int, float) and -math.inf < v < math.inf for v in numbers)
        if not finite or type(row.get("step")) is not int:
            raise ValueError("not a row of finite numbers with a whole number as step")
        validation = {k.removeprefix("val_"): v for k, v in row.items() if k.startswith("val_")}
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(
            **{k: v for k, v in row.items() if k in names},
            evaluation=Evaluation(**validation) if validation else None,
        )


_TAGS = {  # field of metrics.jsonl and its name in trackers
    "train_loss": "loss/train",
    "val_loss": "loss/validation",
    "val_perplexity": "perplexity",
    "val_bits_per_character": "bits_per_character",
    "learning_rate": "learning_rate",
    "gradient_norm": "gradient_norm",
    "characters_per_second": "characters_per_second",
    "skipped_updates": "skipped_updates",
}


def scalars(row: dict[str, Any]) -> dict[str, float]:
    """Return what trackers show of a row of metrics.jsonl."""
    return {_TAGS[k]: v for k, v in row.items() if k in _TAGS and v is not None}


_FILE_NAME = "metrics.jsonl"


def read_metrics(workdir: str | Path) -> list[MetricsRow]:
    """Read the metrics of a run; empty if there is no file. A partial last line is ignored."""
    path = Path(workdir) / _FILE_NAME
    rows, corrupt = _read(path)
    if corrupt:
        raise UserError(f"{path}, line {corrupt[0]} is not a row of metrics")
    return rows


def _read(path: Path) -> tuple[list[MetricsRow], list[int]]:
    """Return the rows of a file and the line numbers of invalid rows."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    rows, corrupt = [], []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(MetricsRow.from_json(json.loads(line)))
        except (ValueError, TypeError, AttributeError, RecursionError):
            if number < len(lines):  # the last one was being written
                corrupt.append(number)
    return rows, corrupt


class MetricsFile:
    """The rows of a run, in memory and, if this process `writes`, in the file.

    Opening it drops the rows after `step`, which the run repeats; `repeated_until` is the last of
    them. Step 0 starts a new file. `started` is the `time.perf_counter()` of this start of the run.
    Without the row of `step`, the times of the run are unknown from then on.
    """

    def __init__(
        self,
        workdir: str | Path,
        step: int,
        started: float,
        report: Callable[[str], object],
        *,
        writes: bool = True,
    ):
        self._writes, self._path = writes, Path(workdir) / _FILE_NAME
        rows, corrupt = _read(self._path) if step and writes else ([], [])
        for number in corrupt:
            report(f"{self._path}, line {number} is not a row of metrics: dropped")
        self.rows = [row for row in rows if row.step <= step]
        self.repeated_until = max((row.step for row in rows), default=0)
        times = {row.step: (row.train_time, row.wall_time) for row in self.rows}
        self._train_time, wall_time = times.get(step, (None, None)) if step else (0.0, 0.0)
        self._started = None if wall_time is None else started - wall_time
        self._n_flushed, text = len(self.rows), _lines(self.rows)
        self._size = len(text)
        if writes:
            replacement = self._path.with_suffix(".tmp")
            replacement.write_bytes(text)
            replacement.replace(self._path)

    def append(self, row: MetricsRow, evaluation: Evaluation | None) -> MetricsRow:
        """Add a row of a `Trainer`, with the times of the run; `flush` writes it."""
        if self._train_time is not None:
            self._train_time += row.train_time or 0.0
        wall_time = None if self._started is None else time.perf_counter() - self._started
        row = dataclasses.replace(
            row, evaluation=evaluation, train_time=self._train_time, wall_time=wall_time
        )
        self.rows.append(row)
        return row

    def flush(self) -> None:
        """Write the rows that are not on disk yet; after an OSError the next call tries again."""
        if self._writes:
            with self._path.open("ab") as file:
                # Drop what a failed write left behind; nothing if someone removed the file.
                file.truncate(min(self._size, file.tell()))
                file.write(_lines(self.rows[self._n_flushed :]))
            self._size, self._n_flushed = self._path.stat().st_size, len(self.rows)


def _lines(rows: list[MetricsRow]) -> bytes:
    return "".join(dump_json(row.to_json()) + "\n" for row in rows).encode()
