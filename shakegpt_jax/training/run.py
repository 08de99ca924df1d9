"""The training run: when to evaluate, save, report and stop."""

import contextlib
import math
import shlex
import time
from pathlib import Path
from typing import Any

from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.writer import CheckpointWriter
from shakegpt_jax.cli.command import StopSignal, record_signal
from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import Corpus, load_corpus
from shakegpt_jax.distributed import check_equal, highest, is_primary, primary_first
from shakegpt_jax.errors import DivergedError, StoppedBySignalError
from shakegpt_jax.inference.language_model import choose_prompt
from shakegpt_jax.reporting.curves import draw_run
from shakegpt_jax.reporting.metrics import Evaluation, MetricsFile, TrainMetrics
from shakegpt_jax.reporting.terminal import Progress, format_duration
from shakegpt_jax.sharding import make_mesh
from shakegpt_jax.training.cpu import adapt_to_cpu, check_memory
from shakegpt_jax.training.init_from import PretrainedCheckpoint, find_pretrained
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
        config: frozen config.
        workdir: run folder, created if it does not exist.
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
            run.restore_or_initialize(started, source)
            while not (run.finished or run.stopped):
                run.train_to_next_evaluation()
                run.save()
                run.check_signal()
                run.show_sample()
            run.finish_saving()
            if run.stopped and not run.finished:
                raise StoppedBySignalError(run.describe_stop(), run.stopped)
            run.summarize()


def _identity(
    config: Config, corpus: Corpus, workdir: str | Path, source: PretrainedCheckpoint | None
) -> dict[str, Any]:
    """Return what all processes of a run have in common."""
    return {
        **{f"config.{path}": value for path, _, value in config.fields() if path != "data.path"},
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
        self.config = trainer.config.train
        self.workdir = checkpoints.workdir
        tokenizer = trainer.corpus.tokenizer
        val_text = tokenizer.decode(trainer.corpus.val_ids[:1_000])
        self.prompt = choose_prompt(tokenizer.vocabulary, val_text)
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
        known = [self.checkpoints.metrics(step) for step in self.checkpoints.steps]
        losses = [metrics["loss"] for metrics in known if metrics]
        losses += [self.evaluation.loss] if self.evaluation else []
        return (
            self.config.target_loss > 0 and min(losses, default=math.inf) <= self.config.target_loss
        )

    def restore_or_initialize(
        self, started: float, source: PretrainedCheckpoint | None = None
    ) -> None:
        """Restore the latest checkpoint, or initialize a new state, and open the metrics file."""
        self.step = self.checkpoints.latest_step
        if self.step:
            self.trainer.restore(self.checkpoints, self.step)
            verb = "has finished" if self.finished else "resumes"
            self.progress.note(
                f"{self.workdir} {verb} at step {self.step} of {self.config.num_steps}"
            )
        else:
            self.trainer.initialize(source)
            if source:
                self.progress.note(source.describe(self.trainer.corpus.tokenizer.vocabulary))
                loss = self.trainer.evaluate().loss
                self.progress.note(f"step 0/{self.config.num_steps}: validation loss {loss:.4f}")
        self.metrics = MetricsFile(
            self.workdir, self.step, started, self.progress.note, writes=is_primary()
        )
        self.progress.begin(self.step, self.trainer.peak_characters_per_second)

    def train_to_next_evaluation(self) -> None:
        """Train until an evaluation is due, and evaluate; a signal ends it early."""
        every = self.config.eval_every
        until = min(self.config.num_steps, (self.step // every + 1) * every)
        self.evaluation = None
        for train in self.trainer.run(self.step, until, self._stops):
            self._check_finite(train, loss=train.train_loss, gradient_norm=train.gradient_norm)
            if train.step == until:
                self.evaluation = self.trainer.evaluate()
                self._check_finite(
                    train,
                    validation_loss=self.evaluation.loss,
                    perplexity=self.evaluation.perplexity,
                )
            self.step = train.step
            self.progress.show(self.metrics.append(train, self.evaluation))
            with contextlib.suppress(OSError):  # a full disk: tried again, reported at the end
                self.metrics.flush()

    def check_signal(self) -> None:
        """Learn whether a process has received a signal, at the same step in all of them."""
        self.stopped = self.stopped or highest(self.signal.received or 0)

    def _stops(self) -> bool:
        # With several processes, the devices finish a chunk before the next one is dispatched: a
        # millisecond or so for each.
        self.check_signal()
        return bool(self.stopped)

    def _check_finite(self, train: TrainMetrics, **values: float | None) -> None:
        bad = [f"{k} is {v}" for k, v in values.items() if v is not None and not math.isfinite(v)]
        if bad:
            self.checkpoints.wait()
            raise DivergedError(
                f"{' and '.join(bad)} in steps {self.step + 1} to {train.step}; "
                f"{self.checkpoints.describe_last_good()}; try a lower "
                "config.optimizer.learning_rate, in another --workdir"
            )

    def save(self) -> None:
        """Start saving the state, unless a checkpoint of this step exists."""
        self.checkpoints.wait()
        if self.step > self.checkpoints.latest_step:
            metrics = self.evaluation.to_dict() if self.evaluation else None
            self.trainer.save(self.checkpoints, self.step, metrics)

    def show_sample(self) -> None:
        """Print sample text."""
        if self.config.sample_length and not self.stopped:
            self.progress.sample(self.trainer.sample(self.prompt, self.config.sample_length))

    def finish_saving(self) -> None:
        """Save the last state, if that has not been done, and wait for it."""
        self.save()
        self.checkpoints.wait()
        self.metrics.flush()

    def describe_stop(self) -> str:
        """Return a line that says how to resume after a signal."""
        if not self.step:
            return "stopped before the first step; run the same command again to start"
        saved = f"stopped at step {self.step}, saved in {self.workdir}"
        return f"{saved}; run the same command again to resume"

    def _describe_target(self) -> str:
        """Say by which evaluation the target loss was reached, as far as the metrics tell."""
        text = f"reached the target loss of {self.config.target_loss}"
        for row in self.metrics.rows:
            if row.evaluation and row.evaluation.loss <= self.config.target_loss:
                text += f" by step {row.step}"
                if row.train_time is not None:
                    text += f", after {format_duration(row.train_time)} of training"
                break
        return text

    def summarize(self) -> None:
        """Print the best checkpoint, the time and what to do next, and plot the metrics."""
        best = self.checkpoints.find("best")
        rows = {row.step: row for row in self.metrics.rows}
        if self.reached_target:
            self.progress.note(self._describe_target())
        self.progress.summary(
            best,
            self.checkpoints.metrics(best),
            self.checkpoints.path(best),
            rows[best].train_time if best in rows else None,
            rows.get(self.step),
        )
        command = f"python -m shakegpt_jax.generate --workdir {shlex.quote(str(self.workdir))}"
        self.progress.command(f"Generate more: {command} --prompt {shlex.quote(self.prompt)}")
        # The others have nothing left to do: without waiting they would disconnect, and time out.
        primary_first(lambda: self.progress.note(draw_run(self.workdir, self.metrics.rows)))
