"""The training run: when to evaluate, save, report and stop."""

import contextlib
import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
from rich.filesize import decimal

from shakegpt_jax.checkpoints.reader import SavedCheckpoint
from shakegpt_jax.checkpoints.run_folder import checkpoint_steps, lock_path, run_lock
from shakegpt_jax.checkpoints.writer import CheckpointWriter
from shakegpt_jax.cli.command import StopSignal, record_signal
from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import Corpus, load_corpus
from shakegpt_jax.distributed import check_equal, highest, is_primary, primary_first
from shakegpt_jax.errors import DivergedError, StoppedBySignalError, UserError
from shakegpt_jax.inference import choose_prompt
from shakegpt_jax.model.gpt import train_flops_per_character
from shakegpt_jax.model.linear import has_amx, mixes_dtypes, operand_dtype
from shakegpt_jax.reporting.curves import draw_run
from shakegpt_jax.reporting.metrics import Callback, Evaluation, MetricsFile, MetricsRow
from shakegpt_jax.reporting.terminal import Progress, format_duration
from shakegpt_jax.reporting.trace import trace
from shakegpt_jax.reporting.trackers import check_tracker, open_tracker
from shakegpt_jax.sharding import make_mesh
from shakegpt_jax.training import start
from shakegpt_jax.training.trainer import Trainer, check_memory

# FLOP/s of a laptop or two server cores in float32, and of two cores with AMX in bfloat16.
_CPU_FLOPS, _AMX_FLOPS = 1e11, 3e11
_SLOW_SECONDS = 10.0
_LONGEST_DISPATCH_SECONDS = 3.0


def train(
    config: Config,
    workdir: str | Path,
    started: float | None = None,
    callbacks: Sequence[Callback] = (),
    profile: int = 0,
) -> None:
    """Train, from scratch or a checkpoint, until `num_steps` or `target_loss` is reached.

    A run resumes from its latest checkpoint. A new run starts from the best parameters of the run
    `config.train.init_from`, if there is one. In the main thread, SIGINT and SIGTERM end it early.
    `started` is the `time.perf_counter()` at which the total time of the run starts, now if None.
    JAX's profiler traces `profile` steps, after as many steps without it. For the callbacks and the
    exceptions, see `shakegpt_jax.train`.
    """
    started = time.perf_counter() if started is None else started
    if profile > (most := min(config.train.eval_every, config.train.num_steps) // 2):
        right = f"at most {most}: as many steps go first, and both come before an evaluation"
        raise UserError(f"--profile is {profile}; it must be {right}")
    check_tracker(config.train.tracker)
    source, saved = start.find_pretrained(config, workdir), start.saved_run(workdir)
    known = source.metadata if source else saved  # whose characters the vocabulary holds
    characters = known.vocabulary if known else ""
    corpus = load_corpus(config.data.path, config.model.block_size, characters)
    config = start.recorded_config(config, saved)
    values = {f"config.{path}": value for path, _, value in config.fields() if path != "data.path"}
    values |= {
        "config.model.compute_dtype (auto depends on the CPU)": str(operand_dtype(config.model)),
        "the text": (corpus.sha256, corpus.tokenizer.vocabulary),
        "--workdir": str(workdir),
        "the checkpoint to start from": source and source.step,
    }
    check_equal(values)
    if saved:
        start.check_resumable(workdir, saved, config, corpus.sha256)
    mesh = make_mesh(config)
    check_memory(config, corpus.tokenizer.vocab_size, mesh)
    with (
        jax.enable_x64(False),  # Optax computes in the default precision
        record_signal("stopping after this dispatch; again to kill without saving") as signal,
        contextlib.ExitStack() as stack,
        Progress(config.train.num_steps, quiet=not is_primary()) as progress,
    ):
        primary_first(lambda: stack.enter_context(run_lock(workdir)))
        lock, steps = lock_path(workdir), checkpoint_steps(workdir)
        content = lock.read_text() if lock.exists() else None, steps
        check_equal({"the content of --workdir, which they must share": content})
        if start.saved_run(workdir) != saved:
            raise UserError(f"another process has trained in {workdir}; run the same command again")
        if corpus.note:
            progress.note(corpus.note)
        progress.note(start.describe_run(config, corpus, mesh))
        config = _adapt_to_cpu(config, corpus, progress.note)
        with CheckpointWriter(workdir, config.train.keep_checkpoints) as checkpoints:
            run = TrainingRun(Trainer(config, corpus, mesh), checkpoints, progress, signal, profile)
            run.begin(started, source)
            if config.train.tracker != "none" and not run.finished:
                files = Path(workdir), run.metrics
                primary_first(lambda: run.callbacks.append(open_tracker(config, *files, stack)))
            run.callbacks += callbacks if is_primary() else []
            while not (run.finished or run.stopped):
                run.train_to_next_evaluation()
                if not run.stops() and (length := config.train.sample_length):
                    progress.sample(run.trainer.sample(run.prompt, length))
            checkpoints.wait()
            run.metrics.flush()
            if run.stopped and not run.finished:
                at = f"{run.step}, saved in {workdir}" if run.step else "0"
                message = f"stopped at step {at}; run the same command again to resume"
                raise StoppedBySignalError(message, run.stopped)
            run.summarize()


def _adapt_to_cpu(config: Config, corpus: Corpus, report: Callable[[str], object]) -> Config:
    """On a CPU, warn of slow steps and shorten dispatches, since signals wait for them."""
    if jax.default_backend() != "cpu":
        return config
    speed = _CPU_FLOPS
    if mixes_dtypes(config.model):
        speed = _AMX_FLOPS if has_amx() else speed
    flops = train_flops_per_character(config.model, corpus.tokenizer.vocab_size)
    step_flops = flops * config.data.batch_size * config.model.block_size
    n_scored = min(len(corpus.val_ids), config.train.eval_characters or len(corpus.val_ids))
    step, evaluation = step_flops / speed, flops / 3 * n_scored / speed
    if step + evaluation > _SLOW_SECONDS:
        report(
            f"at {speed / 1e9:.0f} GFLOP/s one step takes {format_duration(step)} and one "
            f"evaluation {format_duration(evaluation)}: a GPU is faster, and so is --config cpu"
        )
    # Estimated rather than measured, so that a resumed run has the same chunks and stays bit-exact.
    longest = max(1, int(_LONGEST_DISPATCH_SECONDS * speed / step_flops))
    longest = min(config.train.steps_per_dispatch, longest)
    return config.replace({"train.steps_per_dispatch": longest})


class TrainingRun:
    """State and phases of one training run."""

    def __init__(
        self,
        trainer: Trainer,
        checkpoints: CheckpointWriter,
        progress: Progress,
        signal: StopSignal,
        profile: int = 0,
    ):
        self.trainer, self.checkpoints, self.profile = trainer, checkpoints, profile
        self.progress, self.signal = progress, signal
        self.config, self.workdir = trainer.config.train, checkpoints.workdir
        tokenizer, val_ids = trainer.corpus.tokenizer, trainer.corpus.val_ids
        self.prompt = choose_prompt(tokenizer.vocabulary, tokenizer.decode(val_ids[:1_000]))
        self.step = 0
        known = [checkpoints.read(step).metrics for step in checkpoints.steps]
        self.lowest_loss = min((each["loss"] for each in known if each), default=math.inf)
        self.stopped = 0  # number of a signal that a process has received
        self.callbacks: list[Callback] = []

    @property
    def reached_target(self) -> bool:
        """True if a checkpoint or the current parameters have reached the target loss."""
        return self.lowest_loss <= (self.config.target_loss or -math.inf)

    @property
    def finished(self) -> bool:
        """True once the last step is done or the target loss is reached."""
        return self.step >= self.config.num_steps or self.reached_target

    def begin(self, started: float, source: SavedCheckpoint | None = None) -> None:
        """Restore the latest checkpoint, or initialize a new state, and open the metrics file."""
        note, n_step = self.progress.note, self.config.num_steps
        needed, available = map(decimal, self.trainer.memory)
        note(f"memory   {needed} of {available} on each device for training steps")
        self.step = self.first = max(self.checkpoints.steps, default=0)
        if self.step:
            self.trainer.restore(self.checkpoints, self.step)
            verb = "has finished" if self.finished else "resumes"
            note(f"{self.workdir} {verb} at step {self.step} of {n_step}")
        else:
            self.trainer.initialize(source)
            if source:
                note(start.describe(source, self.trainer.corpus.tokenizer.vocabulary))
                note(f"step 0/{n_step}: validation loss {self.trainer.evaluate().loss:.4f}")
        self.metrics = MetricsFile(self.workdir, self.step, started, note, writes=is_primary())
        self.progress.begin(self.step, self.trainer.peak_characters_per_second)

    def train_to_next_evaluation(self) -> None:
        """Train until an evaluation is due, evaluate, and start saving; a signal ends it early."""
        every = self.config.eval_every
        until = min(self.config.num_steps, (self.step // every + 1) * every)
        evaluation: Evaluation | None = None
        for train in self._train_until(until):
            step = train.step
            self._check_finite(step, loss=train.train_loss, gradient_norm=train.gradient_norm)
            if step == until:
                evaluation = now = self.trainer.evaluate()
                self._check_finite(step, validation_loss=now.loss, perplexity=now.perplexity)
                self.lowest_loss = min(self.lowest_loss, now.loss)
            elif self.step == self.first and not self.profile:
                n_left = self.trainer.characters_per_step * (self.config.num_steps - step)
                left = format_duration(n_left / train.characters_per_second)
                self.progress.note(f"time     about {left} of training, and evaluations")
            self.step = step
            row = self.metrics.append(train, evaluation)
            self.progress.show(row)
            with contextlib.suppress(OSError):  # a full disk: tried again, reported at the end
                self.metrics.flush()
            for callback in self.callbacks:
                callback(row.to_json())
        self.checkpoints.wait()
        if self.step > max(self.checkpoints.steps, default=0):
            metrics = evaluation.to_dict() if evaluation else None
            self.trainer.save(self.checkpoints, self.step, metrics)

    def _train_until(self, until: int) -> Iterator[MetricsRow]:
        """Yield the metrics of each dispatch; once, trace `profile` steps after as many others."""
        step, n = self.step, self.profile
        if n and until - step >= 2 * n:
            yield from self.trainer.run(step, step + n, self.stops)
            if self.stopped:
                return
            with trace(self.workdir, self.progress.note):
                traced = list(self.trainer.run(step + n, step + 2 * n, self.stops))
            yield from traced
            step, self.profile = step + 2 * n, 0
        yield from self.trainer.run(step, until, self.stops)

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

    def summarize(self) -> None:
        """Print the best checkpoint, the time and what to do next, and plot the metrics."""
        if self.profile:
            self.progress.note(f"no profile: fewer than {2 * self.profile} steps were left")
        best, rows = self.checkpoints.read("best"), {row.step: row for row in self.metrics.rows}
        if self.reached_target:
            self.progress.note(f"reached the target loss of {self.config.target_loss}")
        seconds = rows[best.step].train_time if best.step in rows else None
        self.progress.summary(best.step, best.metrics, best.path, seconds, rows.get(self.step))
        command = f"shakegpt generate --workdir {shlex.quote(str(self.workdir))}"
        text = f"Generate more: {command} --prompt {shlex.quote(self.prompt)}"
        self.progress.note(text, soft_wrap=True)  # so that copying works
        # The others have nothing left to do: without waiting they would disconnect, and time out.
        primary_first(lambda: self.progress.note(draw_run(self.workdir, self.metrics.rows)))
