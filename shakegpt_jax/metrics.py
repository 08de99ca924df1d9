"""The run's figures on disk: `metrics.jsonl`, one JSON object a line."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from shakegpt_jax.errors import UserError

Row = dict[str, Any]


class MetricsFile:
    """Appends rows as a run produces them.

    A row has `step`, `wall_time` (seconds of the run so far, compilation, evaluations and
    checkpoints included), `train_time` (seconds of it in training steps), `train_loss` (nats
    per character, mean since the row before), `learning_rate`, `gradient_norm` (before
    clipping, mean since the row before) and `characters_per_second`; `skipped_updates` (since the
    row before) if there were any, which the means leave out; at evaluations also `val_loss`,
    `val_standard_error`, `val_perplexity`, `val_bits_per_character`, `val_count`.
    """

    def __init__(self, workdir: str | Path, step: int, started: float):
        """Open a run's file, dropping the rows after `step`: those steps are taken again.

        Args:
            workdir: the run folder.
            step: where the run goes on from; 0 begins a new file.
            started: `time.perf_counter()` when this process began with the run.
        """
        self._path = Path(workdir) / "metrics.jsonl"
        rows = self.read(workdir) if step else []
        rows = [row for row in rows if row["step"] <= step]
        # For the end of the run, by when the file may be gone or damaged.
        self.last: Row | None = None
        self.time_to: dict[int, float] = {}  # train_time by step, of the evaluations
        # If the file has been removed meanwhile, the time before `step` is not known.
        self._whole = step == (rows[-1]["step"] if rows else 0)
        for row in rows:
            self._remember(row)
        self._train_time = rows[-1]["train_time"] if rows else 0.0
        self._started = started - (rows[-1]["wall_time"] if rows else 0.0)
        self._pending: list[Row] = []
        text = "".join(map(_line, rows))
        self._size = len(text.encode())
        replacement = self._path.with_suffix(".tmp")
        replacement.unlink(missing_ok=True)
        with replacement.open("x") as file:  # never through a link
            file.write(text)
        replacement.replace(self._path)

    def append(self, row: Row) -> None:
        """Add a row, its `seconds` turned into the two times of the run so far; `flush` writes."""
        self._train_time += row.pop("seconds")
        wall_time = time.perf_counter() - self._started
        row |= {"train_time": self._train_time, "wall_time": wall_time}
        self._remember(row)
        self._pending.append(row)

    def _remember(self, row: Row) -> None:
        if self._whole:
            self.last = row
            if "val_loss" in row:
                self.time_to[row["step"]] = row["train_time"]

    def flush(self) -> None:
        """Write the rows that have not been written.

        Raises:
            OSError: if they cannot be (a full disk); the next call tries again.
        """
        if not self._path.exists():  # removed by someone: the rest is better than nothing
            self._size = 0
        new = "".join(map(_line, self._pending)).encode()
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with open(descriptor, "r+b") as file:
            file.truncate(self._size)  # what a write that failed has left
            file.seek(self._size)
            file.write(new)
        self._size += len(new)
        self._pending.clear()

    @staticmethod
    def read(workdir: str | Path) -> list[Row]:
        """Read a run's rows; none if there is no file. A torn last line is left out.

        Raises:
            UserError: naming a line that is not a row.
        """
        path = Path(workdir) / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                numbers = [row[name] for name in ("step", "train_time", "wall_time")]
                good = all(type(n) in (int, float) and math.isfinite(n) for n in numbers)
            except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
                good = False
            if not good:
                raise UserError(f"{path}, line {number} is not a row of metrics; mend or remove it")
            rows.append(row)
        return rows


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
