"""Terminal output: progress of a run, tables, samples."""

import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from shakegpt_jax.reporting.metrics import MetricsRow

_PLAIN_LINE_EVERY = 10.0  # seconds
_SMOOTHING = 0.8  # weight of the past in the displayed speed


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Continue without output; Rich would end the run silently."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """Prints the progress of a run; a context manager that shows the bar while active."""

    def __init__(self, num_steps: int, *, quiet: bool = False):
        """Prepare to show a run of `num_steps` steps; quiet: show nothing."""
        self._console = _Console(highlight=False, quiet=quiet)
        self._console.soft_wrap = (
            not self._console.is_terminal
        )  # do not wrap lines in redirected output
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
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=num_steps, figures="compiling")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def begin(self, step: int, peak_characters_per_second: float | None) -> None:
        """Start the clock.

        Args:
            step: steps done before.
            peak_characters_per_second: training speed at the peak FLOP/s of the devices; None if
                it is not known.
        """
        self._peak = peak_characters_per_second
        self._begun = step, time.monotonic()
        self._bar.reset(self._task, completed=step, total=self._num_steps, figures="")

    def note(self, text: str) -> None:
        """Print a line above the bar, without markup."""
        self._console.print(Text(text))

    def command(self, text: str) -> None:
        """Print a line that ends in a command; the terminal wraps it, so that copying works."""
        self._console.print(Text(text), soft_wrap=True)

    def show(self, row: MetricsRow) -> None:
        """Show a row of metrics. Rows with an evaluation remain on the screen."""
        past = row.characters_per_second if self._speed is None else self._speed
        self._speed = _SMOOTHING * past + (1 - _SMOOTHING) * row.characters_per_second
        figures = "every update skipped" if row.train_loss is None else f"loss {row.train_loss:.4f}"
        if row.train_loss is not None and row.skipped_updates:
            figures += f", {row.skipped_updates} skipped"
        figures += f", {self._speed:,.0f} characters/s"
        if self._peak:
            figures += f" ({self._speed / self._peak:.0%} of peak)"
        self._bar.update(self._task, completed=row.step, figures=figures)
        if row.evaluation:
            error = row.evaluation.standard_error
            figures += (
                f", validation loss {row.evaluation.loss:.4f}"
                + ("" if error is None else f" ± {error:.4f}")
                + f", perplexity {row.evaluation.perplexity:.3f}, "
                f"{row.evaluation.bits_per_character:.3f} bits/character"
            )
        elif not self._bar.disable or time.monotonic() - self._last_line < _PLAIN_LINE_EVERY:
            return
        if self._bar.disable and row.step < self._num_steps:  # the bar shows it already
            figures += f", {self._remaining(row.step)} left"
        self._last_line = time.monotonic()
        self.note(f"step {row.step}/{self._num_steps}: {figures}")

    def _remaining(self, step: int) -> str:
        """Estimate the remaining time, evaluations included, from the time so far."""
        first, start = self._begun
        seconds = (time.monotonic() - start) / (step - first) * (self._num_steps - step)
        return format_duration(seconds)

    def sample(self, text: str) -> None:
        """Print sample text, indented."""
        self.note("\n" + "\n".join("    " + line for line in text.split("\n")) + "\n")

    def summary(
        self,
        step: int,
        metrics: dict[str, float],
        checkpoint: Path,
        train_time: float | None,
        last: MetricsRow | None,
    ) -> None:
        """Print the table at the end of a run.

        Args:
            step: step of the best checkpoint.
            metrics: its validation metrics.
            checkpoint: its path.
            train_time: seconds of training up to it, if known.
            last: the last row of metrics, if known.
        """
        table = Table(show_header=False)
        after = "" if train_time is None else f", after {format_duration(train_time)} of training"
        lines = {
            "best validation loss": f"{metrics['loss']:.4f} nats/character",
            "perplexity": f"{metrics['perplexity']:.3f}",
            "bits per character": f"{metrics['bits_per_character']:.3f}",
            "at step": f"{step} of {self._num_steps}{after}",
            "best checkpoint": str(checkpoint),
        }
        if last and last.train_time is not None:
            lines["training time"] = format_duration(last.train_time)
        if last and last.wall_time is not None:
            lines["total time"] = format_duration(last.wall_time)
        for name, value in lines.items():
            table.add_row(name, Text(value, overflow="fold"))
        self._console.print(table)


def format_duration(seconds: float) -> str:
    """Format a duration in at most two units."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    return "{} h {} min".format(*divmod(round(seconds / 60), 60))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; the first column is left-aligned.

    If the table is wider than the terminal, its lines are too: no cell is cut or broken.
    """
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=1_000).print(table)


def print_samples(chunks: Iterable[list[str]], start: str, seeds: Sequence[int]) -> None:
    """Stream the first sample of a batch to standard output, then print the others.

    Args:
        chunks: one new piece of text per sample.
        start: printed before each sample.
        seeds: one per sample; printed in a line before each if there are several.
    """
    headers = [f"--- sample with seed {seed}\n" if len(seeds) > 1 else "" for seed in seeds]
    print(headers[0] + start, end="", flush=True)
    others = [header + start for header in headers[1:]]
    for first, *rest in chunks:
        print(first, end="", flush=True)
        others = [text + new for text, new in zip(others, rest, strict=True)]
    print()
    for text in others:
        print(text)
