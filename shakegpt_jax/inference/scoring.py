"""Exact evaluation: the loss of every character of a text but the first, and logits.

Axes: N windows, B windows per batch, T characters per window.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from shakegpt_jax.inference.sampling import as_integer, require
from shakegpt_jax.model.gpt import GPT
from shakegpt_jax.reporting.metrics import Evaluation
from shakegpt_jax.sharding import batch_devices, constrain, one_ahead, shard_batch

# Characters per batch and device. On a CPU, activations that fit the cache are three times faster
# than those of a batch 16 times larger.
_CPU_BATCH, _BATCH = 1_024, 16_384


def evaluate(model: GPT, params: Any, *texts: np.ndarray, stride: int | None = None) -> Evaluation:
    """Evaluate a model on the ids of one text or more. See `character_losses`."""
    losses = [character_losses(model, params, ids, stride=stride) for ids in texts]
    return Evaluation.from_losses(np.concatenate(losses))


def character_losses(
    model: GPT, params: Any, ids: np.ndarray, *, stride: int | None = None
) -> np.ndarray:
    """Compute the (n - 1,) float32 losses in nats of (n,) ids but the first, from those before.

    `stride` is the number of characters from one window to the next. None is block_size: windows do
    not overlap, and characters have from 1 to block_size characters of context. With a smaller
    stride, each window but the first scores only its last `stride` characters, which have at least
    block_size - stride + 1 characters of context.
    """
    losses = functools.partial(_window_losses, model, params)
    return _map_windows(losses, ids, model.config.block_size, stride)


class Predictions(NamedTuple):
    """Predictions for each character of a text but the first: (n - 1,) each."""

    losses: np.ndarray  # negative log-probability of the character, in nats
    confidences: np.ndarray  # probability of the character that the model finds most probable
    correct: np.ndarray  # bool: whether that is the character


def character_predictions(
    model: GPT, params: Any, *texts: np.ndarray, stride: int | None = None
) -> Predictions:
    """Compute the losses of `character_losses` and the most probable characters in one pass."""
    compute = functools.partial(_window_predictions, model, params)
    parts = [_map_windows(compute, ids, model.config.block_size, stride) for ids in texts]
    losses, confidences, correct = np.concatenate(parts).T
    return Predictions(losses, confidences, correct > 0)


def next_logits(
    model: GPT, params: Any, ids: np.ndarray, *, stride: int | None = None
) -> np.ndarray:
    """Compute the (n, V) float32 logits of the character after each one; see `character_losses`."""
    require(len(ids) >= 1, "the text's length", len(ids), "1 or more")
    logits = functools.partial(_window_logits, model, params)
    return _map_windows(logits, np.append(ids, ids[-1:]), model.config.block_size, stride)


def _map_windows(
    compute: Callable[[np.ndarray], jax.Array], ids: np.ndarray, n_time: int, stride: int | None
) -> np.ndarray:
    """Map windows of (n,) ids to (n - 1, ...) results; `compute` maps (B, T + 1) to (B, T, ...)."""
    stride = n_time if stride is None else as_integer("stride", stride, 1, n_time)
    require(len(ids) >= 2, "the text's length", len(ids), "2 or more")
    n_window = 1 + max(0, math.ceil((len(ids) - 1 - n_time) / stride))
    n_character = _CPU_BATCH if jax.default_backend() == "cpu" else _BATCH
    batch_size, n_device = max(1, n_character // n_time), batch_devices()
    # A power of two for short texts, so that few shapes are compiled.
    batch_size = min(batch_size * n_device, 1 << (n_window - 1).bit_length())
    batch_size = math.ceil(batch_size / n_device) * n_device
    n_padded = math.ceil(n_window / batch_size) * batch_size
    padded = np.zeros((n_padded - 1) * stride + n_time + 1, ids.dtype)
    padded[: len(ids)] = ids
    windows_NxT1 = np.lib.stride_tricks.sliding_window_view(padded, n_time + 1)[::stride]
    windows = (windows_NxT1[i : i + batch_size] for i in range(0, n_padded, batch_size))
    kept: list[np.ndarray] = []
    for device_results in one_ahead(compute(batch) for batch in windows):
        results_BxT = np.asarray(device_results)
        if not kept:  # every character of the first window counts
            kept.append(results_BxT[0, : n_time - stride])
        kept.append(results_BxT[:, n_time - stride :].reshape(-1, *results_BxT.shape[2:]))
    return np.concatenate(kept)[: len(ids) - 1]


@functools.partial(jax.jit, static_argnames="model")
def _window_losses(model: GPT, params: Any, windows_BxT1: jax.Array) -> jax.Array:
    logits_BxTxV = _window_logits(model, params, windows_BxT1)
    targets_BxT = windows_BxT1[:, 1:].astype(jnp.int32)
    losses_BxT = optax.softmax_cross_entropy_with_integer_labels(logits_BxTxV, targets_BxT)
    return constrain(losses_BxT)  # replicated, so that every process can read them


@functools.partial(jax.jit, static_argnames="model")
def _window_logits(model: GPT, params: Any, windows_BxT1: jax.Array) -> jax.Array:
    inputs_BxT = shard_batch(windows_BxT1)[:, :-1].astype(jnp.int32)
    return cast(jax.Array, model.apply({"params": params}, inputs_BxT))


@functools.partial(jax.jit, static_argnames="model")
def _window_predictions(model: GPT, params: Any, windows_BxT1: jax.Array) -> jax.Array:
    """Compute loss, confidence and correctness (1 or 0) of each character: (B, T, 3)."""
    log_probs_BxTxV = jax.nn.log_softmax(_window_logits(model, params, windows_BxT1))
    targets_BxT = windows_BxT1[:, 1:].astype(jnp.int32)
    losses_BxT = -jnp.take_along_axis(log_probs_BxTxV, targets_BxT[..., None], 2)[..., 0]
    confidences_BxT = jnp.exp(log_probs_BxTxV.max(2))
    correct_BxT = (log_probs_BxTxV.argmax(2) == targets_BxT).astype(jnp.float32)
    return constrain(jnp.stack([losses_BxT, confidences_BxT, correct_BxT], 2))
