"""Text generation: it prefills the window, decodes until it is full, and starts again.

The text of a row depends only on its own prompt, seed and options, up to rounding.

Axes: B rows, T characters, C characters of a chunk.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shakegpt_jax.config import ModelConfig
from shakegpt_jax.inference.decoding import (
    decode,
    decode_drafted,
    is_small,
    prefill,
    start_drafting,
)
from shakegpt_jax.inference.ngram import NGram
from shakegpt_jax.inference.sampling import Sampling
from shakegpt_jax.model.gpt import GPT
from shakegpt_jax.model.linear import operand_dtype
from shakegpt_jax.sharding import one_ahead

# Characters per dispatch, and per streamed piece. Small models use longer chunks: dispatch overhead
# would otherwise take a third of their time.
_CHUNK, _SMALL_MODEL_CHUNK = 16, 32

# Characters per pass of drafted decoding, for up to _FEW rows and for more, and roughly how many a
# pass accepts.
_FEW, _VERIFIED_OF_FEW, _VERIFIED, _ACCEPTED = 2, 8, 4, 4

# Time of such a pass, in passes over one character per row: of one row on two CPU cores in float32
# (12 layers x 768), and all else. Constants, as a clock would decide what a seed writes.
_COST_IN_FLOAT32, _COST = 2.7, 1.5


def default_window_stride(block_size: int) -> int:
    """Return the stride that keeps block_size // 2 characters, the latest among them."""
    return min(block_size, block_size - block_size // 2 + 1)


def context_length(length: int, block_size: int, window_stride: int) -> int:
    """Return how many of the last characters of a text are context for the next one."""
    # A longer text keeps its last block_size - window_stride characters and fills the window again,
    # since learned positions do not allow the cache to slide.
    if length <= block_size:
        return length
    return block_size - window_stride + 1 + (length - block_size - 1) % window_stride


def generate_ids(
    model: GPT,
    params: Any,
    prompts: Sequence[np.ndarray],
    seeds: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    window_stride: int,
    ngram: NGram | None = None,
) -> Iterator[list[np.ndarray]]:
    """Continue B prompts, arrays of one id or more, by `max_new_tokens` characters each.

    Yields B arrays of new int32 ids as soon as they are generated. With an n-gram, which drafts
    characters, their lengths differ. A full window drops `window_stride` characters: 1 is exact but
    prefills the window again for every character.
    """
    n_slot = model.config.block_size
    n_row = len(prompts)
    # A power of two, so that few batch sizes are compiled; the last prompt fills the other rows.
    rows = [min(row, n_row - 1) for row in range(1 << (n_row - 1).bit_length())]
    seeds_B = np.array([seeds[row] for row in rows], np.uint32)
    tails = [np.asarray(prompts[row], np.int32)[-n_slot:] for row in rows]
    lengths = np.array([len(prompts[row]) for row in rows])
    n_chunk = chunk_length(params, window_stride)
    if ngram is None:
        n_spare = 0
        step = functools.partial(decode, model, params, sampling=sampling, n_chunk=n_chunk)
    else:
        n_spare = n_verified(n_row)
        options = {"n_verified": n_spare, "n_pass": max(1, n_chunk // _ACCEPTED)}
        step = functools.partial(decode_drafted, model, params, ngram, sampling=sampling, **options)
    count = 0
    while count < max_new_tokens:
        window_BxT, context_lengths_B = align_contexts(tails, lengths, n_slot, window_stride)
        # The last character of a full window still predicts one more.
        room = min(n_slot - int(context_lengths_B.max()) + 1, max_new_tokens - count)
        context = window_BxT, context_lengths_B, seeds_B, count
        state, first_Bx1, _ = prefill(model, params, *context, sampling, n_spare=n_spare)
        left_B = np.full(len(tails), room, np.int32)
        n_dispatch = None  # until every row has its characters
        if ngram is None:
            n_dispatch = math.ceil((room - 1) / n_chunk)
        else:
            state = start_drafting(state, ngram.contexts(tails), left_B - 1)
        chunks = itertools.islice(_chunks(step, state), n_dispatch)
        for ids_BxC, counts_B in one_ahead(itertools.chain([(first_Bx1, None)], chunks)):
            counts_B = np.minimum(ids_BxC.shape[1] if counts_B is None else counts_B, left_B)
            new = [ids[:n] for ids, n in zip(np.asarray(ids_BxC), counts_B, strict=True)]
            tails = [np.append(tail, ids)[-n_slot:] for tail, ids in zip(tails, new, strict=True)]
            left_B -= counts_B
            yield new[:n_row]
            if not left_B.any():
                break
        lengths += room
        count += room


def n_verified(n_row: int) -> int:
    """Return how many characters a pass of drafted decoding verifies."""
    return _VERIFIED_OF_FEW if n_row <= _FEW else _VERIFIED


def speedup_of_drafts(acceptance_rate: float, n_row: int, config: ModelConfig) -> float:
    """Predict how many times as fast drafts make decoding (Leviathan et al. 2023, theorem 3.8)."""
    n_new = sum(acceptance_rate**i for i in range(n_verified(n_row)))  # characters of a pass
    on_cpu_in_float32 = jax.default_backend() == "cpu" and operand_dtype(config) == jnp.float32
    return n_new / (_COST_IN_FLOAT32 if on_cpu_in_float32 and n_row == 1 else _COST)


def chunk_length(params: Any, window_stride: int) -> int:
    """Return how many characters a dispatch of `decode` generates."""
    n_chunk = _SMALL_MODEL_CHUNK if is_small(params) else _CHUNK
    # With a short stride, the rest of a longer chunk would be discarded every time.
    return min(n_chunk, 1 << max(0, window_stride - 2).bit_length())


def padded_length(n_context: int, n_slot: int) -> int:
    """Return the length of a window for a context: a power of two, so that few are compiled."""
    return min(n_slot, max(_CHUNK, 1 << (n_context - 1).bit_length()))


def align_contexts(
    tails: Sequence[np.ndarray],
    lengths: Sequence[int] | np.ndarray,
    n_slot: int,
    window_stride: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return left-aligned (B, T) contexts and (B,) lengths, from the last n_slot ids of texts."""
    context_lengths_B = np.array([context_length(n, n_slot, window_stride) for n in lengths])
    n_time = padded_length(int(context_lengths_B.max()), n_slot)
    window_BxT = np.zeros((len(tails), n_time), np.int32)
    for row, tail, n_context in zip(window_BxT, tails, context_lengths_B, strict=True):
        row[:n_context] = tail[-n_context:]
    return window_BxT, context_lengths_B


def _chunks(step: Callable[..., Any], state: Any) -> Iterator[tuple[jax.Array, Any]]:
    """Dispatch chunks without end; yields (B, C) ids, and how many of each row count, or None."""
    while True:
        state, ids_BxC, counts_B = step(state=state)
        yield ids_BxC, counts_B
