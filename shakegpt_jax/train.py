"""The train state, the pure train step, and the loop around them."""

import dataclasses
import functools
import math
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from shakegpt_jax import hardware, sharding
from shakegpt_jax.checkpoint import Checkpoints, RunInfo
from shakegpt_jax.config import Config
from shakegpt_jax.data import Corpus, load_corpus, sample_windows
from shakegpt_jax.dispatch import one_ahead
from shakegpt_jax.errors import UserError
from shakegpt_jax.evaluate import Evaluation, evaluate
from shakegpt_jax.language_model import LanguageModel
from shakegpt_jax.metrics import MetricsFile, Row
from shakegpt_jax.model import GPT, init_params, train_flops_per_character
from shakegpt_jax.optimizer import make_optimizer, make_schedule
from shakegpt_jax.progress import Progress

SAMPLE_PROMPT = "O God, O God!"

_SLOW_STEP_FLOPS = 0.5e12  # some seconds on a laptop

Metrics = dict[str, jax.Array]


class TrainState(struct.PyTreeNode):
    """All that a step changes. The random keys come from the seed and the step."""

    step: jax.Array  # () int32, steps done
    params: Any  # pytree of float32 arrays
    opt_state: optax.OptState


def create_state(model: GPT, tx: optax.GradientTransformation, seed: int) -> TrainState:
    """Make the state before the first step; pure, so that it can be traced under jit."""
    params = init_params(model, _key(seed, "params", 0))
    return TrainState(jnp.int32(0), params, tx.init(params))


def train_step(
    state: TrainState,
    ids: jax.Array,
    *,
    model: GPT,
    tx: optax.GradientTransformation,
    batch_size: int,
    seed: int,
) -> tuple[TrainState, Metrics]:
    """Take one optimizer step on windows drawn from the text.

    Args:
        state: before it.
        ids: (n,) the training text.
        model: maps (B, T) ids to (B, T, V) logits.
        tx: the optax chain that `state.opt_state` belongs to.
        batch_size: B.
        seed: with the step, decides the windows and the dropout.

    Returns:
        The state after it, and the `loss` (nats per character, mean over the batch, before the
        update) and `gradient_norm` (before clipping).
    """
    key = _key(seed, "windows", state.step)
    batch = sample_windows(key, ids, batch_size, model.config.block_size)
    inputs_BxT, targets_BxT = sharding.split_batch(batch)

    def loss_fn(params: Any) -> jax.Array:
        logits_BxTxV = model.apply(
            {"params": params},
            inputs_BxT,
            train=True,
            rngs={"dropout": _key(seed, "dropout", state.step)},
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits_BxTxV, targets_BxT).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": loss, "gradient_norm": optax.tree.norm(grads)}
    return TrainState(state.step + 1, params, opt_state), metrics


def steps_per_chunk(config: Config) -> int:
    """Return how many steps to dispatch at once: few enough to stop at every evaluation.

    It divides both `eval_every` and `num_steps`, so one shape of loop serves the whole run.
    """
    common = math.gcd(config.train.eval_every, config.train.num_steps)
    most = min(config.train.steps_per_dispatch, common)
    return next(n for n in range(most, 0, -1) if common % n == 0)


def _key(seed: int, purpose: str, step: int | jax.Array) -> jax.Array:
    """One random stream per purpose, one key per step."""
    stream = ("params", "windows", "dropout").index(purpose)
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)


class Trainer:
    """A run in progress: its state on the devices, and what is compiled to move it on."""

    def __init__(self, config: Config, corpus: Corpus):
        """Create the first state and compile the step.

        Args:
            config: the run, frozen.
            corpus: what it learns.

        Raises:
            UserError: if the mesh cannot serve.
        """
        self.config, self.corpus = config, corpus
        self.model = GPT(config.model, corpus.tokenizer.vocab_size)
        # Made once: its identity is part of the state's type.
        self.tx = make_optimizer(config.optimizer, config.train.num_steps)
        self.chunk_steps = steps_per_chunk(config)

        self._mesh = sharding.make_mesh(config)
        create = functools.partial(create_state, self.model, self.tx, config.train.seed)
        self._abstract_state = sharding.shard_state(self._mesh, jax.eval_shape(create))
        where = jax.tree.map(lambda array: array.sharding, self._abstract_state)
        self._train_ids = sharding.replicate(self._mesh, corpus.train_ids)
        with jax.set_mesh(self._mesh):
            self.state = jax.jit(create, out_shardings=where)()
            # Compiled ahead: its time is apart from training's, and it cannot recompile.
            run_chunk = jax.jit(self._scan_steps, donate_argnums=0, out_shardings=(where, None))
            self._run_chunk = run_chunk.lower(self._abstract_state, self._train_ids).compile()

    def _scan_steps(self, state: TrainState, ids: jax.Array) -> tuple[TrainState, Metrics]:
        step = functools.partial(
            train_step,
            model=self.model,
            tx=self.tx,
            batch_size=self.config.data.batch_size,
            seed=self.config.train.seed,
        )
        return jax.lax.scan(lambda state, _: step(state, ids), state, length=self.chunk_steps)

    def run(self, step: int, until: int) -> Iterator[Row]:
        """Train, with one chunk under way while the figures of the one before are read.

        Args:
            step: where the state stands.
            until: where to stop, a whole number of chunks further.

        Yields:
            The figures of each chunk once it is done; `train_time` is the seconds it took.
        """
        schedule = make_schedule(self.config.optimizer, self.config.train.num_steps)
        chunk_size = self.config.data.batch_size * self.config.model.block_size * self.chunk_steps
        steps = range(step + self.chunk_steps, until + 1, self.chunk_steps)
        mark = time.perf_counter()
        for done, metrics in one_ahead((done, self._dispatch()) for done in steps):
            means = {name: float(np.mean(values)) for name, values in metrics.items()}
            seconds, mark = time.perf_counter() - mark, time.perf_counter()
            yield {
                "step": done,
                "train_time": seconds,
                "train_loss": means["loss"],
                "learning_rate": float(schedule(done - 1)),
                "gradient_norm": means["gradient_norm"],
                "characters_per_second": chunk_size / seconds,
            }

    def _dispatch(self) -> Metrics:
        self.state, metrics = self._run_chunk(self.state, self._train_ids)
        return metrics

    def evaluate(self) -> Evaluation:
        """Evaluate on the whole validation split."""
        with jax.set_mesh(self._mesh):
            return evaluate(self.model, self.state.params, self.corpus.val_ids)

    def sample(self, prompt: str, length: int) -> str:
        """Write `length` characters on from a prompt, with the parameters as they are."""
        tokenizer, digest = self.corpus.tokenizer, self.corpus.sha256
        lm = LanguageModel(self.model, self.state.params, tokenizer, self.config, digest)
        return lm.generate(prompt, length)

    def save(self, checkpoints: Checkpoints, step: int, metrics: dict[str, float]) -> None:
        """Start saving the state, with the validation figures of its parameters."""
        rest = {"step": self.state.step, "opt_state": self.state.opt_state}
        checkpoints.save(step, self.state.params, rest, metrics, self._run_info())

    def restore(self, checkpoints: Checkpoints, step: int) -> None:
        """Continue from a saved state.

        Raises:
            UserError: if it is of another config or text, naming what differs.
        """
        if differing := _differing(self._run_info(), checkpoints.run_info(step)):
            raise UserError(
                f"{checkpoints.workdir} holds another run; what differs: {', '.join(differing)}; "
                "give another --workdir, or the config that run was started with"
            )
        abstract = self._abstract_state
        rest = {"step": abstract.step, "opt_state": abstract.opt_state}
        saved = checkpoints.restore(step, {"params": abstract.params, "rest": rest})
        self.state = TrainState(params=saved["params"], **saved["rest"])

    def _run_info(self) -> RunInfo:
        return RunInfo(self.config, self.corpus.tokenizer.vocabulary, self.corpus.sha256)


def train(config: Config, workdir: str | Path) -> None:
    """Train from the start or the newest checkpoint to the last step, reporting on the way.

    Args:
        config: the run, frozen.
        workdir: its folder, created where it is missing.

    Raises:
        UserError: if the config or the text cannot serve, or the folder holds another run.
    """
    started = time.perf_counter()
    corpus = load_corpus(config.data.path, config.model.block_size)
    num_steps, every = config.train.num_steps, config.train.eval_every
    with Progress(num_steps, _peak_characters_per_second(config, corpus)) as progress:
        _warn_if_slow(config, corpus, progress)
        trainer = Trainer(config, corpus)
        with Checkpoints(workdir, config.train.keep_checkpoints) as checkpoints:
            if step := checkpoints.latest_step:
                trainer.restore(checkpoints, step)
                done = "is finished, at" if step == num_steps else "goes on from"
                progress.note(f"{workdir} {done} step {step} of {num_steps}")
            log = MetricsFile(workdir, step)
            prompt = _sample_prompt(corpus)
            before = log.rows[-1] if log.rows else {"train_time": 0.0, "wall_time": 0.0}
            train_time = before["train_time"]
            while step < num_steps:
                until = min(num_steps, (step // every + 1) * every)
                for row in trainer.run(step, until):
                    step = row["step"]
                    row["train_time"] = train_time = train_time + row["train_time"]
                    if step == until:
                        evaluation = dataclasses.asdict(trainer.evaluate())
                        row |= {f"val_{name}": value for name, value in evaluation.items()}
                    row["wall_time"] = before["wall_time"] + time.perf_counter() - started
                    log.append(row)
                    progress.show(row)
                trainer.save(checkpoints, step, evaluation)
                if config.train.sample_length:
                    progress.verse(trainer.sample(prompt, config.train.sample_length))
            best = checkpoints.find("best")
            progress.summary(log.rows, checkpoints.path(best))
            command = f"python -m shakegpt_jax.generate --workdir {shlex.quote(str(workdir))}"
            progress.note(f"To read more: {command} --prompt {shlex.quote(prompt)}")


def _sample_prompt(corpus: Corpus) -> str:
    """Return a prompt that the text's vocabulary can spell."""
    if set(SAMPLE_PROMPT) <= set(corpus.tokenizer.vocabulary):
        return SAMPLE_PROMPT
    text = corpus.tokenizer.decode(corpus.val_ids[:1_000])
    return (text.split() or [text[:1]])[0]


def _differing(ours: RunInfo, theirs: RunInfo) -> list[str]:
    """Name what makes two runs different; the mesh does not, a run may move to other devices."""
    saved = theirs.config.to_dict()
    fields = [
        f"{section}.{name} (saved {saved[section][name]!r}, now {value!r})"
        for section, values in ours.config.to_dict().items()
        for name, value in values.items()
        if section != "mesh" and saved[section][name] != value
    ]
    other_text = not fields and ours.text_sha256 != theirs.text_sha256
    return ["the text"] if other_text else fields


def _peak_characters_per_second(config: Config, corpus: Corpus) -> float | None:
    mesh = sharding.make_mesh(config)
    peak = hardware.peak_flops(mesh.devices.flat[0])
    flops = train_flops_per_character(config.model, corpus.tokenizer.vocab_size)
    return peak * mesh.size / flops if peak else None


def _warn_if_slow(config: Config, corpus: Corpus, progress: Progress) -> None:
    """On a CPU, tell beforehand what one step of a large config will take."""
    if jax.default_backend() != "cpu":
        return
    flops = train_flops_per_character(config.model, corpus.tokenizer.vocab_size)
    flops *= config.data.batch_size * config.model.block_size
    if flops < _SLOW_STEP_FLOPS:
        return
    seconds = flops / hardware.measure_matmul_flops()
    progress.note(
        f"one step of this config is {flops / 1e12:.2g} TFLOP: {seconds:.0f} s or more on this "
        f"CPU, {seconds * config.train.num_steps / 3600:.0f} hours for {config.train.num_steps} "
        "steps; it is meant for a GPU, and configs/cpu.py for a CPU"
    )
