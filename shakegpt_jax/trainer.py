"""A run on the devices: its state, and what is compiled to move it on."""

import functools
import itertools
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from shakegpt_jax import sharding
from shakegpt_jax.checkpoint import Checkpoints, CheckpointWriter
from shakegpt_jax.config import Config
from shakegpt_jax.data import Corpus
from shakegpt_jax.dispatch import one_ahead
from shakegpt_jax.evaluate import Evaluation, evaluate
from shakegpt_jax.language_model import LanguageModel
from shakegpt_jax.metrics import Row
from shakegpt_jax.model import GPT
from shakegpt_jax.optimizer import make_optimizer, make_schedule
from shakegpt_jax.run_info import RunInfo
from shakegpt_jax.train_step import Metrics, TrainState, create_state, train_step


def run_info(config: Config, corpus: Corpus) -> RunInfo:
    """Tell what a run is, as its checkpoints store it."""
    return RunInfo(config, corpus.tokenizer.vocabulary, corpus.sha256)


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

        # Compiled ahead: their time is apart from training's, and they cannot recompile.
        start = time.perf_counter()
        jitted = jax.jit(run_chunk, static_argnums=2, donate_argnums=0, out_shardings=(where, None))
        most, every = train.steps_per_dispatch, min(train.eval_every, train.num_steps)
        lengths = chunk_lengths(every, most) + chunk_lengths(train.num_steps % every, most)
        self._lower = functools.partial(jitted.lower, self._abstract_state, self._train_ids)
        self._run_chunk: dict[int, jax.stages.Compiled] = {}
        self._compile(lengths)
        self.compile_seconds = time.perf_counter() - start

    def _compile(self, lengths: list[int]) -> None:
        with jax.set_mesh(self.mesh):
            for n in set(lengths) - self._run_chunk.keys():
                self._run_chunk[n] = self._lower(n).compile()

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
        chunks = chunk_lengths(until - step, most)
        self._compile(chunks)  # those of a run that is continued may be others
        mark = time.perf_counter()
        lengths = itertools.takewhile(lambda _: not stop(), chunks)
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
        checkpoints.save(
            step, state.params, state.opt_state, metrics, run_info(self.config, self.corpus)
        )

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
