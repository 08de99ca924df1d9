"""The batch on the device: rows join it after their own prefill, and leave when they are done.

Axes: B rows of the batch, N rows of a prefill, H heads, C characters of a chunk, V vocabulary.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shakegpt_jax.inference.decoding import DecodingState, decode, prefill
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.inference.sampler import (
    align_contexts,
    chunk_length,
    context_length,
    default_window_stride,
    padded_length,
)
from shakegpt_jax.inference.sampling import Sampling
from shakegpt_jax.model.kv_cache import init_cache
from shakegpt_jax.model.precision import cast_blocks
from shakegpt_jax.serving.rows import Row

# Floating-point operations of one dispatch, about: a few tenths of a second, for which new requests
# wait at most.
_CPU_FLOPS, _FLOPS = 3e10, 1e13

_GROUPS = (16, 4, 1)  # rows of a prefill; few, so that few programs are compiled


class Batch:
    """Up to `max_rows` rows that are decoded together, each from its own place in its window."""

    def __init__(self, lm: LanguageModel, max_rows: int):
        """Create an empty batch."""
        self.model, self.tokenizer = lm.model, lm.tokenizer
        self._params = cast_blocks(lm.params, lm.config.model)
        self.max_rows = max_rows
        self.n_slot = lm.config.model.block_size
        self.window_stride = default_window_stride(self.n_slot)
        budget = _CPU_FLOPS if jax.default_backend() == "cpu" else _FLOPS
        self.n_character = max(1, int(budget / (2 * lm.n_params)))  # of one dispatch
        self._longest_chunk = chunk_length(lm.params, self.window_stride)
        self._state: DecodingState | None = None
        self._slots: list[Row | None] = []

    @property
    def rows(self) -> list[Row]:
        """The rows in the batch."""
        return [row for row in self._slots if row]

    @property
    def n_free(self) -> int:
        """How many rows can join."""
        return self.max_rows - len(self.rows)

    def padded_context(self, row: Row) -> int:
        """Return the length of the window that a row is prefilled in."""
        n_context = context_length(row.length, self.n_slot, self.window_stride)
        return padded_length(n_context, self.n_slot)

    def group_size(self, n_row: int, n_time: int) -> int:
        """Return how many of `n_row` rows with windows of `n_time` to prefill together."""
        return next(n for n in _GROUPS if n == 1 or (n <= n_row and n * n_time <= self.n_character))

    def prefill(self, rows: Sequence[Row]) -> None:
        """Write the next character of each row; those that go on join the batch.

        Args:
            rows: as many as `group_size` says.
        """
        windows_NxT, lengths_N = align_contexts(
            [row.tail for row in rows],
            [row.length for row in rows],
            self.n_slot,
            self.window_stride,
        )
        state, ids_Nx1, log_probs_Nx1xV = prefill(
            self.model,
            self._params,
            windows_NxT,
            lengths_N.astype(np.int32),
            np.array([row.seed for row in rows], np.uint32),
            np.array([row.n_noise for row in rows], np.int32),
            _sampling(rows, self.model.vocab_size, filtered=True),
            with_log_probs=True,
        )
        ids_Nx1, log_probs_Nx1xV = np.asarray(ids_Nx1), np.asarray(log_probs_Nx1xV)
        for row, n_context, ids_1, log_probs_1xV in zip(
            rows, lengths_N, ids_Nx1, log_probs_Nx1xV, strict=True
        ):
            row.room = self.n_slot - int(n_context) + 1
            row.advance(ids_1, log_probs_1xV, self.tokenizer)
        self._join(state, rows)

    def decode(self) -> None:
        """Write the next characters of every row; those that are done or full leave the batch."""
        n_row = len(self._slots)
        n_chunk = self.chunk(n_row)
        filtered = any(_is_filtered(row) for row in self.rows)
        self._state, ids_BxC, log_probs_BxCxV = decode(
            self.model,
            self._params,
            self._state,
            _sampling(self._slots, self.model.vocab_size, filtered=filtered),
            n_chunk,
            with_log_probs=True,
        )
        ids_BxC = np.asarray(ids_BxC)
        log_probs_BxCxV = np.asarray(log_probs_BxCxV)
        for slot, row in enumerate(self._slots):
            if row:
                row.advance(ids_BxC[slot], log_probs_BxCxV[slot], self.tokenizer)

    def chunk(self, n_row: int) -> int:
        """Return how many characters a dispatch writes in each of `n_row` rows."""
        n_chunk = max(1, self.n_character // n_row)
        return min(self._longest_chunk, 1 << (n_chunk.bit_length() - 1))

    def remove(self, *, shrink: bool) -> list[Row]:
        """Take rows that are done or whose window is full out of the batch and return them.

        Args:
            shrink: let the batch become smaller, if the rows left fit.
        """
        left = [row for row in self.rows if row.finished or row.room == 0]
        self._slots = [None if row in left else row for row in self._slots]
        for row in left:
            row.job.n_running -= 1
        if not self.rows:
            self.clear()
        elif shrink:
            self._resize(len(self.rows))
        return left

    def clear(self) -> None:
        """Drop all rows."""
        self._state, self._slots = None, []

    def _join(self, state: DecodingState, rows: Sequence[Row]) -> None:
        """Give rows that go on a slot each, and copy their part of a state there."""
        going_on = [row for row in rows if not row.finished and row.room > 0]
        if not going_on:
            return
        self._resize(max(len(self._slots), len(self.rows) + len(going_on)))
        free = [slot for slot, row in enumerate(self._slots) if row is None]
        n_slot = len(self._slots)
        places_N = np.full(len(rows), n_slot, np.int32)  # outside: not copied
        for i, row in enumerate(rows):
            if row in going_on:
                places_N[i] = free.pop(0)
                self._slots[places_N[i]] = row
                row.job.n_running += 1
        self._state = jax.tree.map(lambda old, new: _put(old, new, places_N), self._state, state)

    def _resize(self, n_row: int) -> None:
        """Change the number of slots to the next power of two, in steps of a factor of 2."""
        n_row = 1 << (n_row - 1).bit_length()
        if self._state is None:
            self._state = _empty_state(self.model, 1)
            self._slots = [None]
        while (n_slot := len(self._slots)) != n_row:
            n_slot = n_slot * 2 if n_slot < n_row else n_slot // 2
            kept = [slot for slot, row in enumerate(self._slots) if row][:n_slot]
            taken_B = np.zeros(n_slot, np.int32)
            taken_B[: len(kept)] = kept
            self._state = jax.tree.map(
                lambda old: _take(old, taken_B, len(self._slots)), self._state
            )
            self._slots = [self._slots[slot] for slot in kept] + [None] * (n_slot - len(kept))


def _is_filtered(row: Row | None) -> bool:
    if row is None:
        return False
    request = row.job.request
    return request.top_k is not None or request.top_p < 1


def _sampling(rows: Sequence[Row | None], vocab_size: int, *, filtered: bool) -> Sampling:
    """Return the options of rows as arrays; those of free slots are 0, the cheapest."""
    requests = [row and row.job.request for row in rows]
    temperature = np.array([r.temperature if r else 0 for r in requests], np.float32)
    if not filtered:
        return Sampling(temperature)
    top_k = [min(r.top_k or vocab_size, vocab_size) if r else vocab_size for r in requests]
    top_p = [r.top_p if r and r.top_p < 1 else np.inf for r in requests]
    return Sampling(temperature, np.array(top_k, np.int32), np.array(top_p, np.float32))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _empty_state(model: Any, n_row: int) -> DecodingState:
    zeros_B = jnp.zeros(n_row, jnp.int32)
    keys_B = jax.vmap(jax.random.key)(zeros_B)
    return DecodingState(init_cache(model.config, n_row), zeros_B, keys_B, zeros_B)


@functools.partial(jax.jit, donate_argnums=0)
def _put(old: jax.Array, new: jax.Array, places_N: jax.Array) -> jax.Array:
    """Copy rows, of one or several elements of the first axis each, to their places in `old`."""
    new_NxH = new.reshape(len(places_N), -1, *new.shape[1:])
    old_BxH = old.reshape(-1, *new_NxH.shape[1:])
    return old_BxH.at[places_N].set(new_NxH, mode="drop").reshape(old.shape)


@functools.partial(jax.jit, static_argnums=2)
def _take(old: jax.Array, rows_B: jax.Array, n_row: int) -> jax.Array:
    """Return rows of an array that has `n_row`."""
    old_BxH = old.reshape(n_row, -1, *old.shape[1:])
    return old_BxH[rows_B].reshape(-1, *old.shape[1:])
