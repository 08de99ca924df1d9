"""The training run: when to evaluate, save, report and stop."""

import contextlib
import math
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import jax

from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.writer import CheckpointWriter
from shakegpt_jax.cli.command import StopSignal, record_signal
from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import Corpus, load_corpus
from shakegpt_jax.distributed import check_equal, highest, is_primary, primary_first
from shakegpt_jax.errors import DivergedError, StoppedBySignalError
from shakegpt_jax.inference.language_model import choose_prompt
from shakegpt_jax.model.flops import train_flops_per_character
from shakegpt_jax.reporting.curves import draw_run
from shakegpt_jax.reporting.metrics import Evaluation, MetricsFile, TrainMetrics
from shakegpt_jax.reporting.terminal import Progress, format_duration
from shakegpt_jax.sharding import make_mesh
from shakegpt_jax.training.init_from import PretrainedCheckpoint, find_pretrained
from shakegpt_jax.training.resume import (
    check_resumable,
    check_same_run,
    check_shared,
    recorded_config,
    run_lock,
    saved_metadata,
)
from shakegpt_jax.training.trainer import Trainer, run_metadata

_CPU_FLOPS = 1e11  # FLOP/s in large matmuls, about those of a laptop or two server cores
_SLOW_SECONDS = 10.0
_LONGEST_DISPATCH_SECONDS = 3.0


def adapt_to_cpu(config: Config, corpus: Corpus, report: Callable[[str], object]) -> Config:
    """On a CPU, warn about a config that will be slow and shorten the dispatches.

    Signals are handled between dispatches, so each dispatch must be short.

    Args:
        config: frozen config.
        corpus: training and validation text.
        report: called with the warning.

    Returns:
        The config with `steps_per_dispatch` at most what a CPU does in a few seconds.
    """
    if jax.default_backend() != "cpu":
        return config
    flops = train_flops_per_character(config.model, corpus.tokenizer.vocab_size)
    step_flops = flops * config.data.batch_size * config.model.block_size
    step = step_flops / _CPU_FLOPS
    n_scored = min(len(corpus.val_ids), config.train.eval_characters or len(corpus.val_ids))
    evaluation = flops / 3 * n_scored / _CPU_FLOPS
    if step + evaluation > _SLOW_SECONDS:
        n_evaluation = math.ceil(config.train.num_steps / config.train.eval_every)
        total = step * config.train.num_steps + evaluation * n_evaluation
        report(
            f"at {_CPU_FLOPS / 1e9:.0f} GFLOP/s one step takes {format_duration(step)}, one "
            f"evaluation {format_duration(evaluation)} and the whole run {format_duration(total)}: "
            "a GPU is faster, and so is configs/cpu.py"
        )
    # Estimated rather than measured, so that a resumed run has the same chunks and stays bit-exact.
    longest = max(1, int(_LONGEST_DISPATCH_SECONDS * _CPU_FLOPS / step_flops))
    longest = min(config.train.steps_per_dispatch, longest)
    return config.replace({"train.steps_per_dispatch": longest})


def train(config: Config, workdir: str | Path, started: float | None = None) -> None:
    """Train, from scratch or a checkpoint, until `num_steps` or `target_loss` is reached.

    A run resumes from its latest checkpoint. A new run starts from the best parameters of the run
    `config.train.init_from`, if there is one.

    Args:
        config: frozen config.
        workdir: run folder, created if it does not exist.
        started: `time.perf_counter()` when the total time of the run starts; None: now.

    Raises:
        UserError: if the config or the text is invalid, the folder holds another run, or
            `config.train.init_from` cannot be used.
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
    check_same_run(config, corpus, workdir, source)
    mesh = make_mesh(config)
    with (
        record_signal() as signal,
        run_lock(workdir) if is_primary() else contextlib.nullcontext(),
        Progress(config.train.num_steps, quiet=not is_primary()) as progress,
    ):
        check_shared(workdir)
        if corpus.note:
            progress.note(corpus.note)
        config = adapt_to_cpu(config, corpus, progress.note)
        if 0 < config.train.eval_characters < len(corpus.val_ids) - 1:
            progress.note(
                f"evaluations score about {config.train.eval_characters:,} of the "
                f"{len(corpus.val_ids):,} validation characters (config.train.eval_characters)"
            )
        check_resumable(CheckpointReader(workdir), run_metadata(config, corpus))
        with CheckpointWriter(workdir, config.train.keep_checkpoints, progress.note) as checkpoints:
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


class TrainingRun:
    """State and phases of one training run."""

    def __init__(
        self,
        trainer: Trainer,
        checkpoints: CheckpointWriter,
        progress: Progress,
        signal: StopSignal,
    ):
        """Combine the parts of a run, none of which has started."""
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
        """Restore the latest checkpoint, or initialize a new state, and open the metrics file.

        Args:
            started: `time.perf_counter()` when the total time of the run starts.
            source: what a new state starts from; None: random parameters.
        """
        self.step = self.checkpoints.latest_step
        check_equal("checkpoints", {"the latest checkpoint": self.step})
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
        """Wait for the last save, trying again until it succeeds or fails for the third time."""
        self.checkpoints.wait()
        while self.step > self.checkpoints.latest_step:
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
