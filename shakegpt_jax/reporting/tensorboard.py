"""TensorBoard event files with TensorBoard's own writer, which the extra `tensorboard` installs."""

import io
import time
from collections.abc import Callable, Iterable, Sequence
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

    TensorBoard calls a run by the folder of its event file, which is therefore the run folder.
    Events have the seconds of the run as their time, since `metrics.jsonl` has no dates.

    Attributes:
        path: the file; None before the first update.
    """

    def __init__(self, workdir: str | Path):
        """Prepare to convert the metrics of a run.

        Raises:
            UserError: if TensorBoard is not installed.
        """
        _import_writer()
        self._workdir = Path(workdir)
        self._rows: list[MetricsRow] = []  # in the file
        self.path: Path | None = None

    def update(self) -> None:
        """Append new rows, and if rows were replaced, a mark that makes TensorBoard drop the old.

        Raises:
            UserError: naming a line that is not a row of metrics.
            OSError: if the file cannot be written.
        """
        rows = read_metrics(self._workdir)
        if self.path is None:
            self.path = self._open(rows)
        else:
            pairs = enumerate(zip(self._rows, rows, strict=False))
            shorter = min(len(self._rows), len(rows))
            kept = next((i for i, (old, new) in pairs if old != new), shorter)
            events = list(map(_event, rows[kept:]))
            if kept < len(self._rows):
                events.insert(0, _start(rows[kept - 1].step + 1 if kept else 0))
            _append(self.path, _records(events))
        self._rows = rows

    def _open(self, rows: Sequence[MetricsRow]) -> Path:
        """Complete the file of an earlier conversion, or replace it if it holds other rows."""
        wanted = _records([_version(), _start(0), *map(_event, rows)])
        older = sorted(self._workdir.glob(_NAME.format("*")))
        if older and wanted.startswith(written := older[-1].read_bytes()):
            _append(older[-1], wanted[len(written) :])
            return older[-1]
        # A new name: TensorBoard does not start over with a file that it has open.
        path = self._workdir / _NAME.format(time.time_ns())
        temporary = path.with_name("events.tmp")
        with os_errors_name(self._workdir):
            temporary.write_bytes(wanted)
            temporary.replace(path)
        for each in older:
            each.unlink(missing_ok=True)
        return path


def follow(files: Sequence[EventFile], is_training: Callable[[], bool], seconds: float) -> None:
    """Update event files every few seconds until no run is training."""
    active = True
    while active:
        active = is_training()  # asked first, so that the last rows are not missed
        for file in files:
            file.update()
        time.sleep(seconds if active else 0)


def _import_writer() -> tuple[Any, Any]:
    """Return `tensorboard.compat.proto.event_pb2` and `RecordWriter`. Neither needs TensorFlow.

    Raises:
        UserError: if TensorBoard is not installed.
    """
    event_pb2 = import_extra("tensorboard.compat.proto.event_pb2", extra="tensorboard")
    writer = import_extra("tensorboard.summary.writer.record_writer", extra="tensorboard")
    return event_pb2, writer.RecordWriter


def _records(events: Iterable[Any]) -> bytes:
    """Return the bytes of events, each with its length and checksums."""
    buffer, (_, record_writer) = io.BytesIO(), _import_writer()
    writer = record_writer(buffer)
    for event in events:
        writer.write(event.SerializeToString())
    return buffer.getvalue()


def _append(path: Path, content: bytes) -> None:
    if content:
        with path.open("ab") as file:
            file.write(content)


def _version() -> Any:
    """Return the event that begins a file."""
    return _import_writer()[0].Event(file_version="brain.Event:2")


def _start(step: int) -> Any:
    """Return a start of the run; at all but the first, readers drop the data from `step` on."""
    event_pb2, _ = _import_writer()
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    return event_pb2.Event(step=step, session_log=start)


def _event(row: MetricsRow) -> Any:
    """Return the event of a row: its scalars, at its step and the seconds of the run."""
    event_pb2, _ = _import_writer()
    event = event_pb2.Event(step=row.step, wall_time=row.wall_time or 0.0)
    fields = row.to_json()
    for field, tag in _TAGS.items():
        if fields.get(field) is not None:
            event.summary.value.add(tag=tag, simple_value=fields[field])
    return event
