"""Log-probabilities of a prompt, in steps that are short enough to run between others.

Axes: T characters, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from shakegpt_jax.inference.scoring import next_logits
from shakegpt_jax.model.gpt import GPT
from shakegpt_jax.serving.rows import LogProbs, Piece


def score_prompt(
    model: GPT, params: Any, ids: np.ndarray, n_window: int, window_stride: int, k: int
) -> Iterator[Piece]:
    """Score the characters of a prompt with the context that generating them would have.

    Args:
        model: the model.
        params: its parameters.
        ids: the prompt.
        n_window: windows per step.
        window_stride: see `generate_ids`.
        k: how many of the most probable characters to keep.

    Yields:
        The prompt in pieces, of text 0. The log-probabilities of its first character are NaN.
    """
    block_size = model.config.block_size
    first = np.full((1, model.vocab_size), np.nan, np.float32)
    yield Piece(0, ids[:1], LogProbs.of(first, ids[:1], k))
    done = 1
    for start in range(0, len(ids), n_window * window_stride):
        if done == len(ids):
            return
        end = min(start + (n_window - 1) * window_stride + block_size, len(ids) - 1)
        logits_TxV = next_logits(model, params, ids[start:end], stride=window_stride)
        log_probs_TxV = _log_softmax(logits_TxV[done - 1 - start :])
        new = ids[done : end + 1]
        yield Piece(0, new, LogProbs.of(log_probs_TxV, new, k))
        done = end + 1


def _log_softmax(logits_TxV: np.ndarray) -> np.ndarray:
    logits_TxV = logits_TxV - logits_TxV.max(1, keepdims=True)
    return logits_TxV - np.log(np.exp(logits_TxV).sum(1, keepdims=True))
