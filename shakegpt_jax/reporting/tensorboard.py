"""TensorBoard event files with TensorBoard's own writer, which the extra `tensorboard` installs."""

import time
from pathlib import Path
from typing import Any

from shakegpt_jax.cli.command import import_extra
from shakegpt_jax.errors import os_errors_name
from shakegpt_jax.reporting.metrics import MetricsRow, read_metrics

_TAGS = {  # field of metrics.jsonl and name of the scalar
    "train_loss": "loss/train",
    "val_loss": "loss/validation",
    "val_perplexity": "perplexity",
    "val_bits_per_character": "bits_per_character",
    "learning_rate": "learning_rate",
    "gradient_norm": "gradient_norm",
    "characters_per_second": "characters_per_second",
    "skipped_updates": "skipped_updates",
}
_NAME = "events.out.tfevents.{}.metrics"  # TensorBoard reads the files of a folder in this order


class EventFile:
    """The event file of a run: `metrics.jsonl` as scalars, brought up to date by `update`.

    Events have the seconds of the run as their time, since `metrics.jsonl` has no dates.
    """

    def __init__(self, workdir: Path):
        self._proto = import_extra("tensorboard.compat.proto.event_pb2", extra="tensorboard")
        # SummaryWriters write in a thread; that of tensorboardX hangs when the disk is full.
        self._records = import_extra(
            "tensorboard.summary.writer.record_writer", extra="tensorboard"
        )
        self._workdir = workdir
        self._rows: list[MetricsRow] = []  # in the file
        self.path: Path | None = None  # before the first update

    def update(self) -> None:
        """Append the new rows of metrics.jsonl; start a new file if rows were replaced."""
        rows = read_metrics(self._workdir)
        events, older = [], []
        if self.path is None or rows[: len(self._rows)] != self._rows:
            # A start makes TensorBoard drop what older files hold. The last of them remains: it
            # may be open there, and TensorBoard does not go on from a file that is gone.
            older = sorted(self._workdir.glob(_NAME.format("*")))[:-1]
            self.path = self._workdir / _NAME.format(time.time_ns())
            start = self._proto.SessionLog(status=self._proto.SessionLog.START)
            events = [self._proto.Event(file_version="brain.Event:2")]
            events += [self._proto.Event(session_log=start)]
            self._rows = []
        events += map(self._event, rows[len(self._rows) :])
        with os_errors_name(self._workdir), self.path.open("ab") as file:
            writer = self._records.RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())
        self._rows = rows
        for path in older:
            path.unlink(missing_ok=True)

    def _event(self, row: MetricsRow) -> Any:
        event = self._proto.Event(step=row.step, wall_time=row.wall_time or 0.0)
        for field, value in row.to_json().items():
            if field in _TAGS and value is not None:
                event.summary.value.add(tag=_TAGS[field], simple_value=value)
        return event
