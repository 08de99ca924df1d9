"""TensorBoard event files with TensorBoard's own writer, which the extra `tensorboard` installs."""

import time
from pathlib import Path
from typing import Any

from shakegpt_jax.cli.command import import_extra
from shakegpt_jax.errors import os_errors_name
from shakegpt_jax.reporting.metrics import MetricsRow, scalars

_NAME = "events.out.tfevents.{}.metrics"  # TensorBoard reads the files of a folder in this order


class EventFile:
    """A new event file of a run, which replaces older ones, also in an open TensorBoard.

    Events have the seconds of the run as their time, since `metrics.jsonl` has no dates.
    """

    def __init__(self, workdir: Path, rows: list[MetricsRow]):
        self._proto = import_extra("tensorboard.compat.proto.event_pb2", extra="tensorboard")
        # SummaryWriters write in a thread; that of tensorboardX hangs when the disk is full.
        self._records = import_extra(
            "tensorboard.summary.writer.record_writer", extra="tensorboard"
        )
        # A start makes TensorBoard drop what older files hold. The last of them remains: it may be
        # open there, and TensorBoard does not go on from a file that is gone.
        older = sorted(workdir.glob(_NAME.format("*")))[:-1]
        self.path = workdir / _NAME.format(time.time_ns())
        start = self._proto.SessionLog(status=self._proto.SessionLog.START)
        events = [{"file_version": "brain.Event:2"}, {"session_log": start}]
        self._write([self._proto.Event(**each) for each in events])
        self._write([self._event(row.to_json()) for row in rows])
        for path in older:
            path.unlink(missing_ok=True)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row of metrics.jsonl."""
        self._write([self._event(row)])

    def _write(self, events: list[Any]) -> None:
        with os_errors_name(self.path.parent), self.path.open("ab") as file:
            writer = self._records.RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())

    def _event(self, row: dict[str, Any]) -> Any:
        event = self._proto.Event(step=row["step"], wall_time=row["wall_time"] or 0.0)
        for tag, value in scalars(row).items():
            event.summary.value.add(tag=tag, simple_value=value)
        return event
