"""Exact loss of a model on a text, and its command line.

Every character but the first is scored once. Axes: N windows, B windows of a batch, T
characters of a window.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from shakegpt_jax.model import GPT
from shakegpt_jax.sharding import split_batch

_CHARACTERS_PER_BATCH = 16_384


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How well a text was predicted."""

    loss: float  # mean negative log-probability, nats per character
    standard_error: float  # of the loss, with characters taken as independent
    perplexity: float  # exp(loss)
    bits_per_character: float  # loss / ln 2
    count: int  # characters scored

    @classmethod
    def from_losses(cls, losses: np.ndarray) -> "Evaluation":
        """Summarize (count,) losses in nats; sums are taken in float64."""
        losses = losses.astype(np.float64)
        loss = float(losses.mean())
        return cls(
            loss=loss,
            standard_error=float(losses.std() / math.sqrt(len(losses))),
            perplexity=math.exp(loss),
            bits_per_character=loss / math.log(2),
            count=len(losses),
        )


def evaluate(model: GPT, params: Any, ids: np.ndarray, *, stride: int | None = None) -> Evaluation:
    """Evaluate on a text; arguments and errors as in `character_losses`."""
    return Evaluation.from_losses(character_losses(model, params, ids, stride=stride))


def character_losses(
    model: GPT, params: Any, ids: np.ndarray, *, stride: int | None = None
) -> np.ndarray:
    """Compute the negative log-probability of each character, given those before it.

    Args:
        model: any linen module that maps (B, T) ids to (B, T, V) logits and has a
            `config.block_size`.
        params: its parameters.
        ids: (n,) the text, n at least 2.
        stride: characters from one window to the next. None: block_size, windows do not
            overlap, and a character sees from 1 to block_size before it. Smaller: windows
            overlap, only a window's last `stride` characters are scored (the first window's
            all), and each sees at least block_size - stride + 1 but near the text's start.

    Returns:
        (n - 1,) float32 losses in nats, of ids[1:].

    Raises:
        ValueError: if n is below 2, or stride outside [1, block_size].
    """
    n_time = model.config.block_size
    stride = n_time if stride is None else stride
    if len(ids) < 2:
        raise ValueError(f"a text of {len(ids)} characters has none to score; give 2 or more")
    if not 1 <= stride <= n_time:
        raise ValueError(f"stride is {stride}; it must be from 1 to block_size ({n_time})")
    n_window = 1 + max(0, math.ceil((len(ids) - 1 - n_time) / stride))
    batch_size = max(1, _CHARACTERS_PER_BATCH // n_time)
    # A power of two for short texts, so that few shapes are ever compiled.
    batch_size = min(batch_size, 1 << (n_window - 1).bit_length())
    n_padded = math.ceil(n_window / batch_size) * batch_size
    padded = np.zeros((n_padded - 1) * stride + n_time + 1, ids.dtype)
    padded[: len(ids)] = ids
    windows_NxT1 = np.lib.stride_tricks.sliding_window_view(padded, n_time + 1)[::stride]
    batches = [
        _window_losses(model, params, windows_NxT1[i : i + batch_size])
        for i in range(0, n_padded, batch_size)
    ]
    losses_NxT = np.concatenate(jax.device_get(batches))
    scored = np.concatenate([losses_NxT[0], losses_NxT[1:, n_time - stride :].ravel()])
    return scored[: len(ids) - 1]


@functools.partial(jax.jit, static_argnames="model")
def _window_losses(model: GPT, params: Any, windows_BxT1: jax.Array) -> jax.Array:
    windows_BxT1 = split_batch(windows_BxT1).astype(jnp.int32)
    logits_BxTxV = model.apply({"params": params}, windows_BxT1[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits_BxTxV, windows_BxT1[:, 1:])
