"""The train state and the pure train step.

Axes: B windows per batch, T characters per window, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from shakegpt_jax.model.gpt import GPT, init_params
from shakegpt_jax.parallel.mesh import shard_batch
from shakegpt_jax.training.init_from import PretrainedParams, merge_params
from shakegpt_jax.training.randomness import random_key

Metrics = dict[str, jax.Array]


class TrainState(struct.PyTreeNode):
    """Everything that a step updates. Random keys derive from the seed and the step."""

    step: jax.Array  # () int32, completed steps
    params: Any  # pytree of float32 arrays
    opt_state: optax.OptState


def create_state(
    model: GPT,
    tx: optax.GradientTransformation,
    seed: int | jax.Array,
    start: PretrainedParams | None = None,
) -> TrainState:
    """Create the state before the first step; pure, so that it can be traced under jit.

    Args:
        model: the model.
        tx: the optimizer.
        seed: of the random parameters.
        start: another run's parameters to start from; None: all are random.
    """
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
    """Take one optimizer step.

    Args:
        state: the state before the step.
        batch: inputs and targets, (B, T) int32 ids each.
        dropout_key: random key of the dropout masks.
        model: maps (B, T) ids to (B, T, V) logits.
        tx: the optimizer of `state.opt_state`.
        schedule: its learning rate by step.
        accumulate_steps: how many parts of the batch to process one after another; divides B.

    Returns:
        The state after the step, and the metrics `loss` (nats per character, mean over the batch,
        before the update), `gradient_norm` (before clipping), `learning_rate`, and
        `consecutive_nonfinite` (how many steps up to this one had non-finite gradients, counted
        by an optimizer that skips such updates).
    """

    def loss_fn(params: Any, part: tuple[jax.Array, jax.Array], key: jax.Array) -> jax.Array:
        inputs_BxT, targets_BxT = part
        logits_BxTxV = model.apply(
            {"params": params}, inputs_BxT, train=True, rngs={"dropout": key}
        )
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
        "learning_rate": jnp.asarray(schedule(state.step - n_skipped)),
        "consecutive_nonfinite": jnp.asarray(optax.tree.get(opt_state, "notfinite_count", 0)),
    }
    return TrainState(state.step + 1, params, opt_state), metrics


def _mean_over_parts(
    compute: Callable[[Any, jax.Array], Any], batch: Any, key: jax.Array, n_part: int
) -> Any:
    """Average compute(part, key) over equal parts of a batch, one after another."""

    # Part i has rows i, i + n_part, ...: as many from each device, so that none moves.
    def divide(array: jax.Array) -> jax.Array:
        rows = shard_batch(array.reshape(-1, n_part, *array.shape[1:]))
        return rows.swapaxes(0, 1)

    parts = jax.tree.map(divide, batch), jax.random.split(key, n_part)
    zeros = jax.tree.map(
        jnp.zeros_like, jax.eval_shape(compute, *jax.tree.map(lambda a: a[0], parts))
    )

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, compute(shard_batch(part[0]), part[1])), None

    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda a: a / n_part, total)
