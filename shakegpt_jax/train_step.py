"""The train state and the pure train step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from shakegpt_jax import sharding
from shakegpt_jax.data import sample_windows
from shakegpt_jax.model import GPT, init_params

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
    schedule: optax.Schedule,
    batch_size: int,
    seed: int,
) -> tuple[TrainState, Metrics]:
    """Take one optimizer step on windows drawn from the text.

    Args:
        state: before it.
        ids: (n,) the training text.
        model: maps (B, T) ids to (B, T, V) logits.
        tx: the optax chain that `state.opt_state` belongs to.
        schedule: its learning rate by step.
        batch_size: B.
        seed: with the step, decides the windows and the dropout.

    Returns:
        The state after it, and the `loss` (nats per character, mean over the batch, before the
        update), `gradient_norm` (before clipping), `learning_rate`, and `not_finite_in_a_row`,
        the gradients up to this one that were not finite, as a chain counts that skips them.
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
    # A chain that skips updates counts them; its schedule stands still meanwhile.
    n_not_finite = optax.tree.get(state.opt_state, "total_notfinite", 0)
    metrics = {
        "loss": loss,
        "gradient_norm": optax.tree.norm(grads),
        "learning_rate": jnp.asarray(schedule(state.step - n_not_finite)),
        "not_finite_in_a_row": jnp.asarray(optax.tree.get(opt_state, "notfinite_count", 0)),
    }
    return TrainState(state.step + 1, params, opt_state), metrics


def _key(seed: int, purpose: str, step: int | jax.Array) -> jax.Array:
    """One random stream per purpose, one key per step."""
    stream = ("params", "windows", "dropout").index(purpose)
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)
