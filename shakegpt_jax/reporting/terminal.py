"""Terminal output: progress of a run, tables, samples."""

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from shakegpt_jax.config import Config
from shakegpt_jax.reporting.metrics import MetricsRow

_PLAIN_LINE_EVERY = 10.0  # seconds


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Continue without output; Rich would end the run silently."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """Prints the progress of a run; a context manager that shows the bar while active."""

    def __init__(self, num_steps: int, *, quiet: bool = False):
        # In a notebook: lines of text. Rich would display each of them, and every frame of a bar.
        options: Any = {}
        if Console().is_jupyter:
            options = {"force_jupyter": False, "force_terminal": False}
        self._console = _Console(highlight=False, quiet=quiet, **options)
        terminal = self._console.is_terminal
        self._console.soft_wrap = not terminal  # do not wrap lines in redirected output
        self._num_steps = num_steps
        self._peak: float | None = None
        self._begun = 0, time.monotonic()
        self._last_line = time.monotonic()
        self._bar = Bar(
            MofNCompleteColumn(),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not terminal,
        )
        self._task = self._bar.add_task("", total=num_steps, figures="compiling")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def begin(self, step: int, peak_characters_per_second: float | None) -> None:
        """Start the clock at a step. The peak is the speed at the peak FLOP/s of the devices."""
        self._peak = peak_characters_per_second
        self._begun = step, time.monotonic()
        self._bar.reset(self._task, completed=step, total=self._num_steps, figures="")

    def note(self, text: str, *, soft_wrap: bool | None = None) -> None:
        """Print a line above the bar, without markup. With `soft_wrap`, the terminal wraps it."""
        self._console.print(Text(text), soft_wrap=soft_wrap)

    def show(self, row: MetricsRow) -> None:
        """Show a row of metrics. Rows with an evaluation remain on the screen."""
        figures = "" if row.train_loss is None else f"loss {row.train_loss:.4f}, "
        if row.skipped_updates:
            figures += f"{row.skipped_updates} skipped, "
        figures += f"{row.characters_per_second:,.0f} characters/s"
        if self._peak:
            figures += f" ({row.characters_per_second / self._peak:.0%} of peak)"
        self._bar.update(self._task, completed=row.step, figures=figures)
        losses = ""
        if found := row.evaluation:
            error = "" if found.standard_error is None else f" ± {found.standard_error:.4f}"
            losses = f"\n    validation loss {found.loss:.4f}{error}, perplexity "
            losses += f"{found.perplexity:.3f}, {found.bits_per_character:.3f} bits/character"
        elif not self._bar.disable or time.monotonic() - self._last_line < _PLAIN_LINE_EVERY:
            return
        if self._bar.disable and row.step < self._num_steps:  # the bar shows it already
            first, start = self._begun  # the time so far includes evaluations
            per_step = (time.monotonic() - start) / (row.step - first)
            figures += f", {format_duration(per_step * (self._num_steps - row.step))} left"
        self._last_line = time.monotonic()
        self.note(f"step {row.step}/{self._num_steps}: {figures}{losses}")

    def sample(self, text: str) -> None:
        """Print sample text, indented."""
        overflow: Any = "ignore" if self._console.soft_wrap else "fold"
        lines = Text(text).wrap(self._console, max(1, self._console.width - 4), overflow=overflow)
        self.note("".join(f"\n    {line}" for line in lines) + "\n")

    def summary(
        self,
        step: int,
        metrics: dict[str, float],
        checkpoint: Path,
        train_time: float | None,
        last: MetricsRow | None,
    ) -> None:
        """Print the best checkpoint, its metrics and time of training, and the times of the run."""
        after = "" if train_time is None else f", after {format_duration(train_time)} of training"
        table = Table(show_header=False)
        table.add_row("best validation loss", f"{metrics['loss']:.4f} nats/character")
        table.add_row("perplexity", f"{metrics['perplexity']:.3f}")
        table.add_row("bits per character", f"{metrics['bits_per_character']:.3f}")
        table.add_row("at step", f"{step} of {self._num_steps}{after}")
        table.add_row("best checkpoint", Text(str(checkpoint), overflow="fold"))
        if last and last.train_time is not None and last.wall_time is not None:
            table.add_row("training time", format_duration(last.train_time))
            table.add_row("total time", format_duration(last.wall_time))
        self._console.print(table)


def format_duration(seconds: float) -> str:
    """Format a duration in at most two units."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    return "{} h {} min".format(*divmod(round(seconds / 60), 60))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, the first column left-aligned. A wide one exceeds the terminal, uncut."""
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=1_000).print(table)


def differing_settings(configs: Mapping[str, Config]) -> list[str]:
    """Return a line for each setting in which runs differ: its values and the runs with each."""
    values: dict[str, dict[str, list[str]]] = {}
    for run, config in configs.items():
        for name, _, value in config.fields():
            values.setdefault(name, {}).setdefault(repr(value), []).append(run)
    return [
        f"{name}: " + "; ".join(f"{value} in {', '.join(runs)}" for value, runs in found.items())
        for name, found in values.items()
        if len(found) > 1
    ]


def print_samples(chunks: Iterable[list[str]], start: str, seeds: Sequence[int]) -> None:
    """Print samples, each after `start`: the first as its pieces come, then the others."""
    header = "--- sample with seed {}\n" if len(seeds) > 1 else ""
    first, *others = [header.format(seed) + start for seed in seeds]
    print(first, end="", flush=True)
    for new, *rest in chunks:
        print(new, end="", flush=True)
        others = [text + each for text, each in zip(others, rest, strict=True)]
    print("", *others, sep="\n")
