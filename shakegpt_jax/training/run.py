"""The training run: when to evaluate, save, report and stop."""

import contextlib
import math
import shlex
import time
from pathlib import Path
from typing import Any

import jax

from shakegpt_jax.checkpoints.reader import CheckpointReader, SavedCheckpoint
from shakegpt_jax.checkpoints.writer import CheckpointWriter
from shakegpt_jax.cli.command import StopSignal, record_signal
from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import Corpus, load_corpus
from shakegpt_jax.distributed import check_equal, highest, is_primary, primary_first
from shakegpt_jax.errors import DivergedError, StoppedBySignalError
from shakegpt_jax.inference.language_model import choose_prompt
from shakegpt_jax.reporting.curves import draw_run
from shakegpt_jax.reporting.metrics import Evaluation, MetricsFile
from shakegpt_jax.reporting.terminal import Progress, format_duration
from shakegpt_jax.sharding import make_mesh
from shakegpt_jax.training.cpu import adapt_to_cpu, check_memory
from shakegpt_jax.training.init_from import describe, find_pretrained
from shakegpt_jax.training.resume import (
    check_resumable,
    lock_path,
    recorded_config,
    run_lock,
    saved_metadata,
)
from shakegpt_jax.training.trainer import Trainer, run_metadata


def train(config: Config, workdir: str | Path, started: float | None = None) -> None:
    """Train, from scratch or a checkpoint, until `num_steps` or `target_loss` is reached.

    A run resumes from its latest checkpoint. A new run starts from the best parameters of the run
    `config.train.init_from`, if there is one. In the main thread, SIGINT and SIGTERM end it early.

    Args:
        config: a frozen config.
        workdir: the run folder, created if it does not exist.
        started: `time.perf_counter()` when the total time of the run starts; None: now.

    Raises:
        UserError: if the config or the text is invalid, the folder holds another run,
            `config.train.init_from` cannot be used, or the processes differ.
        DivergedError: if a loss or gradient is not finite.
        SaveError: if checkpoints cannot be saved.
        StoppedBySignalError: after SIGINT or SIGTERM, once the state is saved.
    """
    started = time.perf_counter() if started is None else started
    source, saved = find_pretrained(config, workdir), saved_metadata(CheckpointReader(workdir))
    known = source.metadata if source else saved  # whose characters the vocabulary holds
    characters = known.vocabulary if known else ""
    corpus = load_corpus(config.data.path, config.model.block_size, characters)
    config = recorded_config(config, saved)
    check_equal(_identity(config, corpus, workdir, source))
    mesh = make_mesh(config)
    check_memory(config, corpus.tokenizer.vocab_size, mesh)
    with (
        jax.enable_x64(False),  # Optax computes in the default precision
        record_signal() as signal,
        contextlib.ExitStack() as stack,
        Progress(config.train.num_steps, quiet=not is_primary()) as progress,
    ):
        primary_first(lambda: stack.enter_context(run_lock(workdir)))
        _check_shared(workdir)
        if corpus.note:
            progress.note(corpus.note)
        config = adapt_to_cpu(config, corpus, progress.note)
        if 0 < config.train.eval_characters < len(corpus.val_ids) - 1:
            progress.note(
                f"evaluations score about {config.train.eval_characters:,} of the "
                f"{len(corpus.val_ids):,} validation characters (config.train.eval_characters)"
            )
        check_resumable(CheckpointReader(workdir), run_metadata(config, corpus))
        with CheckpointWriter(workdir, config.train.keep_checkpoints) as checkpoints:
            run = TrainingRun(Trainer(config, corpus, mesh), checkpoints, progress, signal)
            run.start(started, source)
            while not (run.finished or run.stopped):
                run.train_to_next_evaluation()
                run.save()
                if not run.stops() and (length := config.train.sample_length):
                    progress.sample(run.trainer.sample(run.prompt, length))
            run.finish_saving()
            if run.stopped and not run.finished:
                raise StoppedBySignalError(run.describe_stop(), run.stopped)
            run.summarize()


def _identity(
    config: Config, corpus: Corpus, workdir: str | Path, source: SavedCheckpoint | None
) -> dict[str, Any]:
    """Return what all processes of a run have in common."""
    fields = {f"config.{path}": value for path, _, value in config.fields() if path != "data.path"}
    return fields | {
        "the text": (corpus.sha256, corpus.tokenizer.vocabulary),
        "--workdir": str(workdir),
        "the checkpoint to start from": source and source.step,
    }


def _check_shared(workdir: str | Path) -> None:
    """Check that all processes see the folder that process 0 has locked, with its checkpoints."""
    lock, checkpoints = lock_path(workdir), CheckpointReader(workdir)
    owner = lock.read_text() if lock.exists() else None
    check_equal({"the content of --workdir, which they must share": (owner, checkpoints.steps)})


class TrainingRun:
    """State and phases of one training run."""

    def __init__(
        self,
        trainer: Trainer,
        checkpoints: CheckpointWriter,
        progress: Progress,
        signal: StopSignal,
    ):
        self.trainer, self.checkpoints = trainer, checkpoints
        self.progress, self.signal = progress, signal
        self.config, self.workdir = trainer.config.train, checkpoints.workdir
        tokenizer, val_ids = trainer.corpus.tokenizer, trainer.corpus.val_ids
        self.prompt = choose_prompt(tokenizer.vocabulary, tokenizer.decode(val_ids[:1_000]))
        self.step = 0
        self.evaluation: Evaluation | None = None  # of the current parameters
        self.stopped = 0  # number of a signal that a process has received

    @property
    def finished(self) -> bool:
        """True once the last step is done or the target loss is reached."""
        return self.step >= self.config.num_steps or self.reached_target

    @property
    def reached_target(self) -> bool:
        """True if a checkpoint or the current parameters have reached the target loss."""
        known = [self.checkpoints.read(step).metrics for step in self.checkpoints.steps]
        losses = [metrics["loss"] for metrics in known if metrics]
        losses += [self.evaluation.loss] if self.evaluation else []
        target = self.config.target_loss
        return target > 0 and min(losses, default=math.inf) <= target

    def start(self, started: float, source: SavedCheckpoint | None = None) -> None:
        """Restore the latest checkpoint, or initialize a new state, and open the metrics file."""
        note, n_step = self.progress.note, self.config.num_steps
        self.step = max(self.checkpoints.steps, default=0)
        if self.step:
            self.trainer.restore(self.checkpoints, self.step)
            verb = "has finished" if self.finished else "resumes"
            note(f"{self.workdir} {verb} at step {self.step} of {n_step}")
        else:
            self.trainer.initialize(source)
            if source:
                note(describe(source, self.trainer.corpus.tokenizer.vocabulary))
                note(f"step 0/{n_step}: validation loss {self.trainer.evaluate().loss:.4f}")
        self.metrics = MetricsFile(self.workdir, self.step, started, note, writes=is_primary())
        self.progress.begin(self.step, self.trainer.peak_characters_per_second)

    def train_to_next_evaluation(self) -> None:
        """Train until an evaluation is due, and evaluate; a signal ends it early."""
        every = self.config.eval_every
        until = min(self.config.num_steps, (self.step // every + 1) * every)
        self.evaluation = None
        for train in self.trainer.run(self.step, until, self.stops):
            step = train.step
            self._check_finite(step, loss=train.train_loss, gradient_norm=train.gradient_norm)
            if step == until:
                self.evaluation = now = self.trainer.evaluate()
                self._check_finite(step, validation_loss=now.loss, perplexity=now.perplexity)
            self.step = step
            self.progress.show(self.metrics.append(train, self.evaluation))
            with contextlib.suppress(OSError):  # a full disk: tried again, reported at the end
                self.metrics.flush()

    def stops(self) -> bool:
        """Return whether a process has received a signal: the same in all, at the same step."""
        # With several processes, the devices finish a chunk before the next one is dispatched: a
        # millisecond or so for each.
        self.stopped = self.stopped or highest(self.signal.received or 0)
        return bool(self.stopped)

    def _check_finite(self, step: int, **values: float | None) -> None:
        bad = [f"{k} is {v}" for k, v in values.items() if v is not None and not math.isfinite(v)]
        if bad:
            self.checkpoints.wait()
            raise DivergedError(
                f"{' and '.join(bad)} in steps {self.step + 1} to {step}; "
                f"{self.checkpoints.describe_last_good()}; try a lower "
                "config.optimizer.learning_rate, in another --workdir"
            )

    def save(self) -> None:
        """Start saving the state, unless a checkpoint of this step exists."""
        self.checkpoints.wait()
        if self.step > max(self.checkpoints.steps, default=0):
            metrics = self.evaluation.to_dict() if self.evaluation else None
            self.trainer.save(self.checkpoints, self.step, metrics)

    def finish_saving(self) -> None:
        """Save the last state, if that has not been done, and wait for it."""
        self.save()
        self.checkpoints.wait()
        self.metrics.flush()

    def describe_stop(self) -> str:
        """Say how to resume after a signal."""
        if not self.step:
            return "stopped before the first step; run the same command again to start"
        saved = f"stopped at step {self.step}, saved in {self.workdir}"
        return f"{saved}; run the same command again to resume"

    def _describe_target(self) -> str:
        target = self.config.target_loss
        text = f"reached the target loss of {target}"
        first = (r for r in self.metrics.rows if r.evaluation and r.evaluation.loss <= target)
        if row := next(first, None):
            text += f" by step {row.step}"
            if row.train_time is not None:
                text += f", after {format_duration(row.train_time)} of training"
        return text

    def summarize(self) -> None:
        """Print the best checkpoint, the time and what to do next, and plot the metrics."""
        best = self.checkpoints.find("best")
        rows = {row.step: row for row in self.metrics.rows}
        if self.reached_target:
            self.progress.note(self._describe_target())
        seconds = rows[best].train_time if best in rows else None
        metrics, path = self.checkpoints.read(best).metrics, self.checkpoints.path(best)
        self.progress.summary(best, metrics, path, seconds, rows.get(self.step))
        command = f"shakegpt generate --workdir {shlex.quote(str(self.workdir))}"
        text = f"Generate more: {command} --prompt {shlex.quote(self.prompt)}"
        self.progress.note(text, soft_wrap=True)  # so that copying works
        # The others have nothing left to do: without waiting they would disconnect, and time out.
        primary_first(lambda: self.progress.note(draw_run(self.workdir, self.metrics.rows)))
