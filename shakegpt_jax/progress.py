"""What a training run prints: a bar on a terminal, plain lines elsewhere, a table at the end."""

import os
import sys
import time
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from shakegpt_jax.metrics import Row

_PLAIN_LINE_EVERY = 10.0  # seconds
_SMOOTHING = 0.8  # weight of the past in the speed that the bar shows


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on without output, instead of ending the run in silence."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """The terminal side of a run; a context manager, during which the bar is shown."""

    def __init__(self, num_steps: int):
        """Prepare to show a run of so many steps."""
        self._console = _Console(highlight=False, soft_wrap=True)
        self._num_steps = num_steps
        self._peak: float | None = None
        self._speed: float | None = None
        self._begun = 0, time.monotonic()
        self._last_line = time.monotonic()
        self._bar = Bar(
            MofNCompleteColumn(),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=num_steps, figures="compiling")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def begin(self, step: int, peak_characters_per_second: float | None) -> None:
        """Show where a run begins.

        Args:
            step: steps done before.
            peak_characters_per_second: training speed if every FLOP of the devices' peak were
                used; None where the peak is not known.
        """
        self._peak = peak_characters_per_second
        self._begun = step, time.monotonic()
        self._bar.reset(self._task, completed=step, total=self._num_steps, figures="")

    def note(self, text: str) -> None:
        """Print a line above the bar, as it is."""
        self._console.print(Text(text))

    def show(self, row: Row) -> None:
        """Show a row of the metrics; one with validation figures stays on the screen."""
        speed = row["characters_per_second"]
        past = speed if self._speed is None else self._speed
        self._speed = _SMOOTHING * past + (1 - _SMOOTHING) * speed
        loss = row["train_loss"]
        figures = "every update skipped" if loss is None else f"loss {loss:.4f}"
        if loss is not None and "skipped_updates" in row:
            figures += f", {row['skipped_updates']} skipped"
        figures += f", {self._speed:,.0f} characters/s"
        if self._peak:
            figures += f" ({self._speed / self._peak:.0%} of peak)"
        self._bar.update(self._task, completed=row["step"], figures=figures)
        if "val_loss" in row:
            figures += (
                f", validation loss {row['val_loss']:.4f} ± {row['val_standard_error']:.4f}, "
                f"perplexity {row['val_perplexity']:.3f}, "
                f"{row['val_bits_per_character']:.3f} bits/character"
            )
        elif not self._bar.disable or time.monotonic() - self._last_line < _PLAIN_LINE_EVERY:
            return
        if self._bar.disable and row["step"] < self._num_steps:  # the bar has it already
            figures += f", {self._left(row['step'])} left"
        self._last_line = time.monotonic()
        self.note(f"step {row['step']}/{self._num_steps}: {figures}")

    def _left(self, step: int) -> str:
        """Estimate the time to the end, evaluations included, from that since the beginning."""
        first, start = self._begun
        seconds = (time.monotonic() - start) / (step - first) * (self._num_steps - step)
        return duration(seconds)

    def verse(self, text: str) -> None:
        """Print a sample, set off from the rest."""
        self.note("\n" + "\n".join("    " + line for line in text.split("\n")) + "\n")

    def summary(
        self,
        step: int,
        metrics: dict[str, float],
        checkpoint: Path,
        time_to_best: float | None,
        last: Row | None,
    ) -> None:
        """Print the table that ends a run.

        Args:
            step: of the best checkpoint.
            metrics: its validation figures.
            checkpoint: where it is.
            time_to_best: seconds of training until then, if known.
            last: the run's last row of metrics, if known.
        """
        table = Table(show_header=False)
        after = "" if time_to_best is None else f", after {duration(time_to_best)} of training"
        lines = {
            "best validation loss": f"{metrics['loss']:.4f} nats/character",
            "perplexity": f"{metrics['perplexity']:.3f}",
            "bits per character": f"{metrics['bits_per_character']:.3f}",
            "at step": f"{step} of {self._num_steps}{after}",
            "best checkpoint": str(checkpoint),
        }
        if last:
            lines["time training"] = duration(last["train_time"])
            lines["time overall"] = duration(last["wall_time"])
        for name, value in lines.items():
            table.add_row(name, Text(value, overflow="fold"))
        self._console.print(table)


def duration(seconds: float) -> str:
    """Write a time in two units at most."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    return "{} h {} min".format(*divmod(round(seconds / 60), 60))
