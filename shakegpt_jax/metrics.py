"""The run's figures on disk: `metrics.jsonl`, one JSON object a line."""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class MetricsFile:
    """Appends rows as a run produces them.

    A row has `step`, `wall_time` (seconds of the run so far, compilation, evaluations and
    checkpoints included), `train_time` (seconds of it in training steps), `train_loss` (nats
    per character, mean since the row before), `learning_rate`, `gradient_norm` (before
    clipping, mean since the row before) and `characters_per_second`; at evaluations also
    `val_loss`, `val_standard_error`, `val_perplexity`, `val_bits_per_character`, `val_count`.
    """

    def __init__(self, workdir: str | Path, step: int):
        """Open a run's file, dropping the rows after `step`: those steps are taken again."""
        self._path = Path(workdir) / "metrics.jsonl"
        rows = self.read(workdir) if step else []
        self.rows = [row for row in rows if row["step"] <= step]
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        replacement = self._path.with_suffix(".tmp")
        replacement.write_text(lines)
        replacement.replace(self._path)

    def append(self, row: Row) -> None:
        """Add one row, flushed to the file system."""
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    @staticmethod
    def read(workdir: str | Path) -> list[Row]:
        """Read a run's rows; none if there is no file. A torn last line is left out."""
        path = Path(workdir) / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]
