"""The pure train step, its state and its random keys, and the compiled scan over steps.

Axes: K steps, B windows per batch, T characters per window, D = n_embd, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from shakegpt_jax.config import Config, DataConfig
from shakegpt_jax.data.windows import gather_windows, sample_starts, shuffled_starts, split_windows
from shakegpt_jax.model.gpt import GPT, init_params
from shakegpt_jax.model.layers import parameter_axes
from shakegpt_jax.sharding import shard_batch, shard_state
from shakegpt_jax.training.optimizer import make_optimizer, make_schedule

_STREAMS = ("params", "windows", "dropout")


def random_key(seed: int | jax.Array, stream: str, step: int | jax.Array) -> jax.Array:
    """Return the random key of a step from one of `_STREAMS`, which are independent."""
    key = jax.random.fold_in(jax.random.key(seed), _STREAMS.index(stream))
    return jax.random.fold_in(key, step)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def window_starts(
    seed: int | jax.Array, steps_K: jax.Array, n: int, data: DataConfig, block_size: int
) -> jax.Array:
    """Return the (K, B) starts of the windows that steps draw from n characters."""
    sizes = n, data.batch_size, block_size

    def draw(step: jax.Array) -> jax.Array:
        if data.replacement:
            return sample_starts(random_key(seed, "windows", step), *sizes)
        return shuffled_starts(random_key(seed, "windows", 0), step, *sizes)

    return jax.vmap(draw)(steps_K)


Metrics = dict[str, jax.Array]


class TrainState(struct.PyTreeNode):
    """Everything that a step updates. Random keys derive from the seed and the step."""

    step: jax.Array  # () int32, completed steps
    params: Any  # pytree of float32 arrays
    opt_state: optax.OptState


class PretrainedParams(NamedTuple):
    """Parameters of a source, and where its characters are in it."""

    params: Any  # pytree of float32 arrays
    ids_V: jax.Array  # id in the source of each character; -1 for those that it lacks


def merge_params(fresh: Any, start: PretrainedParams) -> Any:
    """Replace the parameters of a new model by those of a source; pure, to be traced under jit.

    New characters keep their random embeddings and columns of the head; where they are frequent,
    this trains better than the mean of the source's columns (Hewitt 2021, "Initializing new word
    embeddings for pretrained language models"; measured in docs/interop.md).
    """
    source, is_known_V = start.params, start.ids_V >= 0
    ids_V = jnp.maximum(start.ids_V, 0)
    wte_VxD = source["wte"]["embedding"][ids_V]
    head_DxV = source["lm_head"]["kernel"][:, ids_V]
    n_time = len(fresh["wpe"]["embedding"])
    return source | {
        "wte": {"embedding": jnp.where(is_known_V[:, None], wte_VxD, fresh["wte"]["embedding"])},
        "wpe": {"embedding": source["wpe"]["embedding"][:n_time]},
        "lm_head": {"kernel": jnp.where(is_known_V[None], head_DxV, fresh["lm_head"]["kernel"])},
    }


def create_state(
    model: GPT,
    tx: optax.GradientTransformation,
    seed: int | jax.Array,
    start: PretrainedParams | None = None,
) -> TrainState:
    """Create the state before the first step, from another run's parameters if they are given."""
    params = init_params(model, random_key(seed, "params", 0))
    if start is not None:
        params = merge_params(params, start)
    return TrainState(jnp.int32(0), params, tx.init(params))


def train_step(
    state: TrainState,
    batch: tuple[jax.Array, jax.Array],
    dropout_key: jax.Array,
    *,
    model: GPT,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    accumulate_steps: int = 1,
) -> tuple[TrainState, Metrics]:
    """Take one optimizer step on a batch of inputs and targets, (B, T) int32 ids each.

    `accumulate_steps` parts of the batch are processed one after another. Metrics: `loss` (nats per
    character, mean over the batch, before the update), `gradient_norm` (before clipping),
    `learning_rate`, and `consecutive_nonfinite` (how many steps up to this one had non-finite
    gradients, counted by an optimizer that skips such updates).
    """

    def loss_fn(params: Any, part: tuple[jax.Array, jax.Array], key: jax.Array) -> jax.Array:
        inputs_BxT, targets_BxT = part
        rngs = {"dropout": key}
        logits_BxTxV = model.apply({"params": params}, inputs_BxT, train=True, rngs=rngs)
        return optax.softmax_cross_entropy_with_integer_labels(logits_BxTxV, targets_BxT).mean()

    loss_and_grad = functools.partial(jax.value_and_grad(loss_fn), state.params)
    if accumulate_steps == 1:
        loss, grads = loss_and_grad(batch, dropout_key)
    else:
        loss, grads = _mean_over_parts(loss_and_grad, batch, dropout_key, accumulate_steps)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # An optimizer that skips updates counts them, and its schedule does not advance then.
    n_skipped = optax.tree.get(state.opt_state, "total_notfinite", 0)
    metrics = {
        "loss": loss,
        "gradient_norm": optax.tree.norm(grads),
        "learning_rate": jnp.asarray(schedule(state.step - n_skipped), jnp.float32),
        "consecutive_nonfinite": jnp.asarray(optax.tree.get(opt_state, "notfinite_count", 0)),
    }
    return TrainState(state.step + 1, params, opt_state), metrics


def _mean_over_parts(
    compute: Callable[[Any, jax.Array], Any], batch: Any, key: jax.Array, n_part: int
) -> Any:
    """Average compute(part, key) over equal parts of a batch, one after another."""

    # Part i has rows i, i + n_part, ...: as many from each device, so that none moves.
    def divide(array: jax.Array) -> jax.Array:
        return shard_batch(array.reshape(-1, n_part, *array.shape[1:])).swapaxes(0, 1)

    parts = jax.tree.map(divide, batch), jax.random.split(key, n_part)
    one = jax.tree.map(lambda a: a[0], parts)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(compute, *one))

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, compute(shard_batch(part[0]), part[1])), None

    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda a: a / n_part, total)


class Chunk(NamedTuple):
    """Jitted functions of a run. All can be lowered from abstract arguments, without devices."""

    abstract_state: TrainState  # shapes, dtypes and shardings
    create: Any  # seed, PretrainedParams or nothing -> TrainState before the first step
    run: Any  # TrainState (donated), ids or (n, B, T + 1) windows, seed, n -> TrainState, metrics


def make_chunk(config: Config, model: GPT, mesh: Mesh) -> Chunk:
    """Build the functions of a run."""
    tx = make_optimizer(config.optimizer, config.train.num_steps)
    step = functools.partial(
        train_step,
        model=model,
        tx=tx,
        schedule=make_schedule(config.optimizer, config.train.num_steps),
        accumulate_steps=config.train.accumulate_steps,
    )
    create = functools.partial(create_state, model, tx)
    abstract_state = shard_state(mesh, jax.eval_shape(create, config.train.seed), parameter_axes)
    shardings = jax.tree.map(lambda array: array.sharding, abstract_state)
    replicated = NamedSharding(mesh, PartitionSpec())  # metrics: every process reads them

    def run(
        state: TrainState, inputs: jax.Array, seed: jax.Array, n: int
    ) -> tuple[TrainState, Metrics]:
        def body(state: TrainState, windows_BxT1: jax.Array) -> tuple[TrainState, Metrics]:
            batch = shard_batch(split_windows(windows_BxT1))
            return step(state, batch, random_key(seed, "dropout", state.step))

        if inputs.ndim == 1:
            block_size, steps_K = config.model.block_size, state.step + jnp.arange(n, dtype="int32")
            starts_KxB = window_starts(seed, steps_K, len(inputs), config.data, block_size)
            inputs = gather_windows(inputs, starts_KxB, block_size)
        return jax.lax.scan(body, state, inputs)

    return Chunk(
        abstract_state,
        jax.jit(create, out_shardings=shardings),
        jax.jit(run, static_argnums=3, donate_argnums=0, out_shardings=(shardings, replicated)),
    )


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Return the most memory that a program takes on each device, arguments included."""
    stats: Any = compiled.memory_analysis()
    # XLA's own figure, peak_memory_in_bytes, lacks the arguments on CPUs.
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes + stats.temp_size_in_bytes + results
