"""The training loop: chunks of steps, evaluations, checkpoints, and what is told of them."""

import contextlib
import dataclasses
import functools
import itertools
import math
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from shakegpt_jax import hardware, sharding
from shakegpt_jax.checkpoint import Checkpoints, CheckpointWriter
from shakegpt_jax.config import Config
from shakegpt_jax.data import Corpus, load_corpus
from shakegpt_jax.dispatch import one_ahead
from shakegpt_jax.errors import DamagedError, DivergedError, StoppedBySignalError, UserError
from shakegpt_jax.evaluate import Evaluation, evaluate
from shakegpt_jax.guard import StopSignals, only_one
from shakegpt_jax.language_model import LanguageModel
from shakegpt_jax.metrics import MetricsFile, Row
from shakegpt_jax.model import GPT, compute_dtype, train_flops_per_character
from shakegpt_jax.optimizer import make_optimizer, make_schedule
from shakegpt_jax.progress import Progress
from shakegpt_jax.run_info import RunInfo
from shakegpt_jax.train_step import Metrics, TrainState, create_state, train_step

SAMPLE_PROMPT = "O God, O God!"

_SLOW_SECONDS = 10.0
_LONGEST_DISPATCH_SECONDS = 3.0
_CPU_FLOPS = 1e11  # per second, a laptop's

# What may change when a run is continued; the text itself is known by its digest.
_RESUMABLE_FIELDS = {
    "data.path",
    "train.eval_every",
    "train.steps_per_dispatch",
    "train.keep_checkpoints",
    "train.sample_length",
    "mesh.data",
    "mesh.fsdp",
}


def chunk_lengths(num_steps: int, most: int) -> list[int]:
    """Cut a stretch of steps into dispatches of `most`, and one of what is left."""
    whole, rest = divmod(num_steps, most)
    return [most] * whole + [rest] * (rest > 0)


class Trainer:
    """A run in progress: its state on the devices, and what is compiled to move it on.

    The state comes from `initialize` or `restore`.
    """

    state: TrainState

    def __init__(self, config: Config, corpus: Corpus, mesh: Mesh):
        """Compile the step.

        Args:
            config: the run, frozen.
            corpus: what it learns.
            mesh: where.
        """
        train = config.train
        self.config, self.corpus = config, corpus
        self.mesh = mesh
        self.model = GPT(config.model, corpus.tokenizer.vocab_size)
        # Made once: its identity is part of the state's type.
        tx = make_optimizer(config.optimizer, train.num_steps)
        create = functools.partial(create_state, self.model, tx, train.seed)
        self._abstract_state = sharding.shard_state(self.mesh, jax.eval_shape(create))
        where = jax.tree.map(lambda array: array.sharding, self._abstract_state)
        self._create = jax.jit(create, out_shardings=where)
        self._train_ids = sharding.replicate(self.mesh, corpus.train_ids)
        step = functools.partial(
            train_step,
            model=self.model,
            tx=tx,
            schedule=make_schedule(config.optimizer, train.num_steps),
            batch_size=config.data.batch_size,
            seed=train.seed,
        )

        def run_chunk(state: TrainState, ids: jax.Array, n: int) -> tuple[TrainState, Metrics]:
            return jax.lax.scan(lambda state, _: step(state, ids), state, length=n)

        with jax.set_mesh(self.mesh):
            # Compiled ahead: their time is apart from training's, and they cannot recompile.
            start = time.perf_counter()
            jitted = jax.jit(
                run_chunk, static_argnums=2, donate_argnums=0, out_shardings=(where, None)
            )
            most, every = train.steps_per_dispatch, min(train.eval_every, train.num_steps)
            lengths = chunk_lengths(every, most) + chunk_lengths(train.num_steps % every, most)
            self._lower = functools.partial(jitted.lower, self._abstract_state, self._train_ids)
            self._run_chunk = {n: self._lower(n).compile() for n in set(lengths)}
            self.compile_seconds = time.perf_counter() - start

    def initialize(self) -> None:
        """Create the state before the first step, each device its own part."""
        with jax.set_mesh(self.mesh):
            self.state = self._create()

    def run(
        self, step: int, until: int, stop: Callable[[], object] = lambda: False
    ) -> Iterator[Row]:
        """Train, on an accelerator with one chunk under way while another's figures are read.

        Args:
            step: where the state stands.
            until: where to stop: at the next evaluation or before it, at a chunk's end.
            stop: asked before each dispatch; if true, nothing more is dispatched, and the rows
                end where the state stands.

        Yields:
            The figures of each chunk once it is done, `seconds` being the time it took.
        """
        most = self.config.train.steps_per_dispatch
        window_size = self.config.data.batch_size * self.config.model.block_size
        # On a CPU, XLA starts the next chunk before it wakes the reader of the one before, whose
        # time would then count as twice as long, and the next one's as nothing.
        overlap = iter if jax.default_backend() == "cpu" else one_ahead
        mark = time.perf_counter()
        lengths = itertools.takewhile(lambda _: not stop(), chunk_lengths(until - step, most))
        for n, metrics in overlap((n, self._dispatch(n)) for n in lengths):
            means = self._means(jax.device_get(metrics))
            seconds, mark = time.perf_counter() - mark, time.perf_counter()
            step += n
            yield {
                "step": step,
                "seconds": seconds,
                "characters_per_second": n * window_size / seconds,
                **means,
            }

    def _means(self, metrics: dict[str, np.ndarray]) -> Row:
        """Mean a chunk's metrics over its updates, those that were skipped left out."""
        in_a_row = metrics["not_finite_in_a_row"]
        skipped = (in_a_row > 0) & (in_a_row <= self.config.optimizer.max_skipped_updates)
        loss, norm = (metrics[name][~skipped] for name in ("loss", "gradient_norm"))
        row: Row = {
            "train_loss": float(loss.mean()) if len(loss) else None,
            "learning_rate": float(metrics["learning_rate"][-1]),
            "gradient_norm": float(norm.mean()) if len(norm) else None,
        }
        return row | ({"skipped_updates": int(skipped.sum())} if skipped.any() else {})

    def _dispatch(self, n: int) -> Metrics:
        if n not in self._run_chunk:  # after a stop between evaluations
            with jax.set_mesh(self.mesh):
                self._run_chunk[n] = self._lower(n).compile()
        self.state, metrics = self._run_chunk[n](self.state, self._train_ids)
        return metrics

    def evaluate(self) -> Evaluation:
        """Evaluate on the whole validation split."""
        with jax.set_mesh(self.mesh):
            return evaluate(self.model, self.state.params, self.corpus.val_ids)

    def sample(self, prompt: str, length: int) -> str:
        """Write `length` characters on from a prompt, with the parameters as they are."""
        tokenizer, digest = self.corpus.tokenizer, self.corpus.sha256
        lm = LanguageModel(self.model, self.state.params, tokenizer, self.config, digest)
        return lm.generate(prompt, length)

    def save(
        self, checkpoints: CheckpointWriter, step: int, metrics: dict[str, float] | None
    ) -> None:
        """Start saving the state, with the validation figures of its parameters if known."""
        state = self.state
        checkpoints.save(step, state.params, state.opt_state, metrics, self._run_info())

    def restore(self, checkpoints: Checkpoints, step: int) -> None:
        """Continue from a saved state."""
        abstract = {
            "params": self._abstract_state.params,
            "opt_state": self._abstract_state.opt_state,
        }
        where = self._abstract_state.step.sharding
        self.state = TrainState(
            step=jax.device_put(jnp.int32(step), where), **checkpoints.restore(step, abstract)
        )

    def _run_info(self) -> RunInfo:
        return _run_info(self.config, self.corpus)


def _run_info(config: Config, corpus: Corpus) -> RunInfo:
    return RunInfo(config, corpus.tokenizer.vocabulary, corpus.sha256)


def train(config: Config, workdir: str | Path) -> None:
    """Train from the start or the newest checkpoint to the last step, reporting on the way.

    Args:
        config: the run, frozen.
        workdir: its folder, created where it is missing.

    Raises:
        UserError: if the config or the text cannot serve, or the folder holds another run.
        DivergedError: if a loss or a gradient is not finite.
        SaveError: if checkpoints cannot be saved.
        StoppedBySignalError: after a signal, everything being saved.
    """
    started = time.perf_counter()
    corpus = load_corpus(config.data.path, config.model.block_size)
    mesh = sharding.make_mesh(config)
    num_steps, every = config.train.num_steps, config.train.eval_every
    prompt = _sample_prompt(corpus)
    with only_one(workdir), Progress(num_steps) as progress, StopSignals() as stop:
        config = _suit_cpu(config, corpus, progress)
        _refuse_another_run(Checkpoints(workdir), _run_info(config, corpus))
        with CheckpointWriter(workdir, config.train.keep_checkpoints, progress.note) as checkpoints:
            trainer = Trainer(config, corpus, mesh)
            if step := checkpoints.latest_step:
                trainer.restore(checkpoints, step)
                done = "is finished, at" if step == num_steps else "goes on from"
                progress.note(f"{workdir} {done} step {step} of {num_steps}")
            else:
                trainer.initialize()
            progress.begin(step, _peak_characters_per_second(trainer))
            log = MetricsFile(workdir, step, started)
            saved, evaluation = step, None
            while step < num_steps and not stop.received:
                until = min(num_steps, (step // every + 1) * every)
                evaluation = None
                for row in trainer.run(step, until, lambda: stop.received):
                    first, step = step + 1, row["step"]
                    _check_finite(row, ("train_loss", "gradient_norm"), first, checkpoints)
                    if step == until:
                        evaluation = dataclasses.asdict(trainer.evaluate())
                        row |= {f"val_{name}": value for name, value in evaluation.items()}
                        _check_finite(row, ("val_loss", "val_perplexity"), first, checkpoints)
                    log.append(row)
                    progress.show(row)
                    with contextlib.suppress(OSError):  # a full disk: tried again, and told below
                        log.flush()
                if step > saved:
                    trainer.save(checkpoints, step, evaluation)
                    saved = step
                if config.train.sample_length and not stop.received:
                    progress.verse(trainer.sample(prompt, config.train.sample_length))
            checkpoints.wait()
            while checkpoints.latest_step < step:  # the last is tried until it is the third
                trainer.save(checkpoints, step, evaluation)
                checkpoints.wait()
            log.flush()
            if step < num_steps:
                assert stop.received
                raise StoppedBySignalError(_how_to_go_on(step, workdir), stop.received)
            best = checkpoints.find("best")
            progress.summary(checkpoints.metrics(best), checkpoints.path(best), log.last)
    command = f"python -m shakegpt_jax.generate --workdir {shlex.quote(str(workdir))}"
    progress.note(f"To read more: {command} --prompt {shlex.quote(prompt)}")


def _refuse_another_run(checkpoints: Checkpoints, info: RunInfo) -> None:
    for step in reversed(checkpoints.steps):
        with contextlib.suppress(DamagedError):  # another one may tell
            if differing := _differing(info, checkpoints.run_info(step)):
                raise UserError(
                    f"{checkpoints.workdir} holds another run; what differs: "
                    f"{', '.join(differing)}; give another --workdir, or the config that run was "
                    "started with"
                )
            return


def _how_to_go_on(step: int, workdir: str | Path) -> str:
    if not step:
        return f"stopped before the first steps; the same command starts again in {workdir}"
    return f"stopped and saved at step {step}; the same command goes on from there in {workdir}"


def _check_finite(
    row: Row, names: tuple[str, ...], first: int, checkpoints: CheckpointWriter
) -> None:
    bad = [name for name in names if row[name] is not None and not math.isfinite(row[name])]
    if bad:
        checkpoints.wait()
        raise DivergedError(
            f"{' and '.join(f'{name} is {row[name]}' for name in bad)} in steps {first} to "
            f"{row['step']}; {checkpoints.last_good()}; try a lower "
            "config.optimizer.learning_rate, in another --workdir"
        )


def _sample_prompt(corpus: Corpus) -> str:
    """Return a prompt that the text's vocabulary can spell."""
    if set(SAMPLE_PROMPT) <= set(corpus.tokenizer.vocabulary):
        return SAMPLE_PROMPT
    text = corpus.tokenizer.decode(corpus.val_ids[:1_000])
    return (text.split() or [text[:1]])[0]


def _differing(ours: RunInfo, theirs: RunInfo) -> list[str]:
    """Name what makes two runs different ones."""
    saved = theirs.config.to_dict()
    fields = [
        f"{section}.{name} (saved {saved[section][name]!r}, now {value!r})"
        for section, values in ours.config.to_dict().items()
        for name, value in values.items()
        if f"{section}.{name}" not in _RESUMABLE_FIELDS and saved[section][name] != value
    ]
    other_text = ours.text_sha256 != theirs.text_sha256
    return fields + [f"the text (now {ours.config.data.path or 'Tiny Shakespeare'})"] * other_text


def _peak_characters_per_second(trainer: Trainer) -> float | None:
    model = trainer.config.model
    peak = hardware.peak_flops(trainer.mesh.devices.flat[0])
    if peak is None or compute_dtype(model) != jnp.bfloat16:
        return None
    return peak * trainer.mesh.size / train_flops_per_character(model, trainer.model.vocab_size)


def _suit_cpu(config: Config, corpus: Corpus, progress: Progress) -> Config:
    """On a CPU, tell beforehand what a large config will take, and dispatch few steps at once."""
    if jax.default_backend() != "cpu":
        return config
    flops = train_flops_per_character(config.model, corpus.tokenizer.vocab_size)
    step_flops = flops * config.data.batch_size * config.model.block_size
    evaluation_flops = flops / 3 * len(corpus.val_ids)
    if step_flops + evaluation_flops > _SLOW_SECONDS * _CPU_FLOPS:
        speed = hardware.measure_matmul_flops()
        step, evaluation = step_flops / speed, evaluation_flops / speed
        hours = (step + evaluation / config.train.eval_every) * config.train.num_steps / 3600
        progress.note(
            f"on this CPU one step takes {step:.1f} s or more, one evaluation {evaluation:.0f} s, "
            f"{config.train.num_steps} steps {hours:.1f} hours; this config is for a GPU, and "
            "configs/cpu.py for a CPU"
        )
    # A signal is heeded between dispatches. Not from a measurement: it would differ from start
    # to start, and with it the rows of the metrics and the last bits.
    most = max(1, int(_LONGEST_DISPATCH_SECONDS * _CPU_FLOPS / step_flops))
    most = min(config.train.steps_per_dispatch, most)
    return config.replace({"train.steps_per_dispatch": most})
