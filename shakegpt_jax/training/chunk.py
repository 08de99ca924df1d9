"""A chunk: several train steps, with the windows that they draw, as one compiled program.

Axes: K steps, B windows per batch, T characters per window.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from shakegpt_jax.config import Config
from shakegpt_jax.data.windows import gather_windows, split_windows
from shakegpt_jax.model.gpt import GPT
from shakegpt_jax.parallel.mesh import shard_batch, shard_state
from shakegpt_jax.training.optimizer import make_optimizer, make_schedule
from shakegpt_jax.training.randomness import random_key, window_starts
from shakegpt_jax.training.step import Metrics, TrainState, create_state, train_step


class Chunk(NamedTuple):
    """Jitted functions of a run. All can be lowered from abstract arguments, without devices."""

    abstract_state: TrainState  # shapes, dtypes and shardings
    create: Any  # seed, PretrainedParams or nothing -> TrainState before the first step
    run: Any  # TrainState (donated), ids, seed, n -> TrainState n steps later, (n,) metrics
    run_windows: Any  # TrainState (donated), (n, B, T + 1) windows, seed -> the same


def make_chunk(config: Config, model: GPT, mesh: Mesh) -> Chunk:
    """Build the functions of a run.

    Args:
        config: frozen config.
        model: the model.
        mesh: the devices of the state.
    """
    tx = make_optimizer(config.optimizer, config.train.num_steps)
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    step = functools.partial(
        train_step,
        model=model,
        tx=tx,
        schedule=schedule,
        accumulate_steps=config.train.accumulate_steps,
    )
    create = functools.partial(create_state, model, tx)
    abstract_state = shard_state(mesh, jax.eval_shape(create, config.train.seed))
    shardings = jax.tree.map(lambda array: array.sharding, abstract_state)
    replicated = NamedSharding(mesh, PartitionSpec())  # metrics: every process reads them

    def run_windows(
        state: TrainState, windows_KxBxT1: jax.Array, seed: jax.Array
    ) -> tuple[TrainState, Metrics]:
        def body(state: TrainState, windows_BxT1: jax.Array) -> tuple[TrainState, Metrics]:
            batch = shard_batch(split_windows(windows_BxT1))
            return step(state, batch, random_key(seed, "dropout", state.step))

        return jax.lax.scan(body, state, windows_KxBxT1)

    def run(
        state: TrainState, ids: jax.Array, seed: jax.Array, n: int
    ) -> tuple[TrainState, Metrics]:
        block_size, steps_K = config.model.block_size, state.step + jnp.arange(n)
        starts_KxB = window_starts(seed, steps_K, len(ids), config.data, block_size)
        return run_windows(state, gather_windows(ids, starts_KxB, block_size), seed)

    compiled = functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, replicated))
    return Chunk(
        abstract_state,
        jax.jit(create, out_shardings=shardings),
        compiled(run, static_argnums=3),
        compiled(run_windows),
    )
