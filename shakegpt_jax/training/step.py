"""The train state and the pure train step.

Axes: B windows per batch, T characters per window, V vocabulary.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct

from shakegpt_jax.model.gpt import GPT, init_params

Metrics = dict[str, jax.Array]

_STREAMS = ("params", "windows", "dropout")


class TrainState(struct.PyTreeNode):
    """Everything that a step updates. Random keys derive from the seed and the step."""

    step: jax.Array  # () int32, completed steps
    params: Any  # pytree of float32 arrays
    opt_state: optax.OptState


def random_key(
    seed: int | jax.Array, stream: Literal["params", "windows", "dropout"], step: int | jax.Array
) -> jax.Array:
    """Return the random key of a step, from an independent stream per purpose."""
    return jax.random.fold_in(
        jax.random.fold_in(jax.random.key(seed), _STREAMS.index(stream)), step
    )


def create_state(model: GPT, tx: optax.GradientTransformation, seed: int | jax.Array) -> TrainState:
    """Create the state before the first step; pure, so that it can be traced under jit."""
    params = init_params(model, random_key(seed, "params", 0))
    return TrainState(jnp.int32(0), params, tx.init(params))


def train_step(
    state: TrainState,
    batch: tuple[jax.Array, jax.Array],
    dropout_key: jax.Array,
    *,
    model: GPT,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
) -> tuple[TrainState, Metrics]:
    """Take one optimizer step.

    Args:
        state: the state before the step.
        batch: inputs and targets, (B, T) int32 ids each.
        dropout_key: random key of the dropout masks.
        model: maps (B, T) ids to (B, T, V) logits.
        tx: the optimizer of `state.opt_state`.
        schedule: its learning rate by step.

    Returns:
        The state after the step, and the metrics `loss` (nats per character, mean over the batch,
        before the update), `gradient_norm` (before clipping), `learning_rate`, and
        `consecutive_nonfinite` (how many steps up to this one had non-finite gradients, counted
        by an optimizer that skips such updates).
    """
    inputs_BxT, targets_BxT = batch

    def loss_fn(params: Any) -> jax.Array:
        logits_BxTxV = model.apply(
            {"params": params}, inputs_BxT, train=True, rngs={"dropout": dropout_key}
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits_BxTxV, targets_BxT).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
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
