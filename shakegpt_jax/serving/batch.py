"""The batch on the device: rows join it after their own prefill, and leave when they are done.

Axes: B rows of the batch, N rows of a prefill, H heads, C characters of a chunk, V vocabulary.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shakegpt_jax.inference import sampler
from shakegpt_jax.inference.decoding import DecodingState, decode, prefill
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.inference.sampling import Sampling
from shakegpt_jax.inference.scoring import next_logits
from shakegpt_jax.model.gpt import init_cache
from shakegpt_jax.serving.rows import Row

# Floating-point operations of one dispatch: a few tenths of a second, for which new requests wait
# at most.
_CPU_FLOPS, _FLOPS = 3e10, 1e13

# Reading the parameters takes as long as computing with them for roughly this many rows.
_CHEAP_ROWS = 16

_SCORED = 1_024  # characters of a prompt to score in one step, at most

_GROUPS = (16, 4, 1)  # rows of a prefill; few, so that few programs are compiled


class Batch:
    """Up to `max_rows` rows that are decoded together, each from its own place in its window."""

    def __init__(self, lm: LanguageModel, max_rows: int):
        self._lm, self._max_rows = lm, max_rows
        self.block_size = lm.config.model.block_size
        self.window_stride = sampler.default_window_stride(self.block_size)
        flops = _CPU_FLOPS if jax.default_backend() == "cpu" else _FLOPS
        self._budget = max(1, int(flops / (2 * lm.n_params)))  # characters of one dispatch
        # Windows of one step of scoring.
        self.n_window = _power_of_two(min(self._budget, _SCORED) // self.block_size)
        self._longest_chunk = sampler.chunk_length(lm.params, self.window_stride)
        # Numbers of slots that the batch may have; few, as for _GROUPS.
        self._sizes = [4**i for i in range(10) if 4**i < max_rows] + [max_rows]
        self._state: DecodingState = _empty_state(lm.for_decoding[0], 1)
        self._slots: list[Row | None] = [None]

    def warm_up(self) -> None:
        """Compile all programs, which otherwise delays the first texts that need them."""
        lm, n_slot = self._lm, self.block_size
        states: dict[int, DecodingState] = {}
        for n_time in {sampler.padded_length(n, n_slot) for n in range(1, n_slot + 1)}:
            for n in _GROUPS:
                if self._group_size(n, n_time) == n <= self._max_rows:
                    zeros_N, windows_NxT = np.zeros(n, np.int32), np.zeros((n, n_time), np.int32)
                    arrays = (windows_NxT, zeros_N + 1, zeros_N.astype(np.uint32), zeros_N)
                    states[n], *_ = self._prefill(*arrays, self._sampling([None] * n))
        for n_row in self._sizes:
            state = _empty_state(lm.for_decoding[0], n_row)
            for n, new in states.items():
                state = _put_rows(state, new, np.full(n, n_row, np.int32))
            for n_other in {*self._sizes} - {n_row}:
                _take_rows(state, np.zeros(n_other, np.int32))
            self._decode(state, [None] * n_row)
        id_type = lm.tokenizer.encode("").dtype
        for i in range(self.n_window.bit_length()):
            ids = np.zeros((2**i - 1) * self.window_stride + n_slot, id_type)
            next_logits(*lm.for_decoding, ids, stride=self.window_stride)

    @property
    def rows(self) -> list[Row]:
        """The rows in the batch."""
        return [row for row in self._slots if row]

    def prefill(self, rows: Sequence[Row]) -> list[Row]:
        """Write the next character of the first rows that fit; those that go on join the batch."""
        n_free = self._max_rows - len(self.rows)
        if not rows or not n_free:
            return []
        n_time = self._padded_context(rows[0])
        group = [row for row in rows if self._padded_context(row) == n_time][:n_free]
        group = group[: self._group_size(len(group), n_time)]
        windows_NxT, lengths_N = sampler.align_contexts(
            [row.tail for row in group],
            [row.length for row in group],
            self.block_size,
            self.window_stride,
        )
        state, ids_Nx1, log_probs_Nx1xV = self._prefill(
            windows_NxT,
            lengths_N.astype(np.int32),
            np.array([row.seed for row in group], np.uint32),
            np.array([row.n_noise for row in group], np.int32),
            self._sampling(group),
        )
        for row, n_context in zip(group, lengths_N, strict=True):
            row.room = self.block_size - int(n_context) + 1
        self._advance(group, ids_Nx1, log_probs_Nx1xV)
        going_on = [i for i, row in enumerate(group) if not row.finished and row.room > 0]
        self.resize(max(len(self._slots), len(self.rows) + len(going_on)))
        free = [slot for slot, row in enumerate(self._slots) if row is None]
        places_N = np.full(len(group), len(self._slots), np.int32)  # outside: not copied
        for i, slot in zip(going_on, free, strict=False):
            places_N[i], self._slots[slot] = slot, group[i]
        self._state = _put_rows(self._state, state, places_N)
        return group

    def _padded_context(self, row: Row) -> int:
        n_context = sampler.context_length(row.length, self.block_size, self.window_stride)
        return sampler.padded_length(n_context, self.block_size)

    def _group_size(self, n_row: int, n_time: int) -> int:
        # A character of a prefill takes half the time of one that is decoded.
        n_most = 2 * self._budget // n_time
        return next(n for n in _GROUPS if n <= max(1, min(n_row, n_most)))

    def decode(self) -> None:
        """Write the next characters of every row."""
        self._state, ids_BxC, log_probs_BxCxV = self._decode(self._state, self._slots)
        self._advance(self._slots, ids_BxC, log_probs_BxCxV)

    def _prefill(self, *arrays: Any) -> Any:
        return prefill(*self._lm.for_decoding, *arrays, with_log_probs=True)

    def _decode(self, state: DecodingState, slots: Sequence[Row | None]) -> Any:
        n_chunk = _power_of_two(self._budget // max(len(slots), _CHEAP_ROWS))
        n_chunk = min(self._longest_chunk, n_chunk)
        options = self._sampling(slots)
        return decode(*self._lm.for_decoding, state, options, n_chunk, with_log_probs=True)

    def _sampling(self, slots: Sequence[Row | None]) -> Sampling:
        options = [row.sampling if row else None for row in slots]
        return Sampling.stack(options, self._lm.tokenizer.vocab_size)

    def _advance(
        self, slots: Sequence[Row | None], ids_BxC: jax.Array, log_probs_BxCxV: jax.Array
    ) -> None:
        new = zip(slots, np.asarray(ids_BxC), np.asarray(log_probs_BxCxV), strict=True)
        for row, ids_C, log_probs_CxV in new:
            if row:
                row.advance(ids_C, log_probs_CxV, self._lm.tokenizer)

    def remove(self) -> list[Row]:
        """Take rows that are done or whose window is full out of the batch and return them."""
        removed = [row for row in self.rows if row.finished or row.room == 0]
        self._slots = [None if row in removed else row for row in self._slots]
        return removed

    def clear(self) -> None:
        """Drop all rows."""
        self._state, self._slots = _empty_state(self._lm.for_decoding[0], 1), [None]

    def resize(self, n_row: int = 0) -> None:
        """Change the number of slots to the next possible one, and move the rows to the front."""
        n_row = next(size for size in self._sizes if size >= max(n_row, len(self.rows)))
        if n_row == len(self._slots):
            return
        kept = [slot for slot, row in enumerate(self._slots) if row]
        taken_B = np.zeros(n_row, np.int32)
        taken_B[: len(kept)] = kept
        self._state = _take_rows(self._state, taken_B)
        self._slots = [self._slots[slot] for slot in kept] + [None] * (n_row - len(kept))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _empty_state(model: Any, n_row: int) -> DecodingState:
    zeros_B = jnp.zeros(n_row, jnp.int32)
    keys_B = jax.vmap(jax.random.key)(zeros_B)
    return DecodingState(init_cache(model.config, n_row), zeros_B, keys_B, zeros_B)


@functools.partial(jax.jit, donate_argnums=0)
def _put_rows(state: DecodingState, new: DecodingState, places_N: jax.Array) -> DecodingState:
    """Copy the rows of `new` to their places in a state; those outside of it are left out."""

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        new_NxH, old_BxH = _by_row(new, len(places_N)), _by_row(old, len(state.last_B))
        return old_BxH.at[places_N].set(new_NxH, mode="drop").reshape(old.shape)

    return jax.tree.map(put, state, new)


@jax.jit
def _take_rows(state: DecodingState, rows_B: jax.Array) -> DecodingState:
    """Return a state of some rows of another."""

    def take(old: jax.Array) -> jax.Array:
        return _by_row(old, len(state.last_B))[rows_B].reshape(-1, *old.shape[1:])

    return jax.tree.map(take, state)


def _by_row(array: jax.Array, n_row: int) -> jax.Array:
    """Split the first axis, which in the cache is rows times heads."""
    return array.reshape(n_row, -1, *array.shape[1:])


def _power_of_two(n: int) -> int:
    """Return the largest power of two up to `n`, at least 1."""
    return 1 << (max(n, 1).bit_length() - 1)
