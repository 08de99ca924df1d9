"""The batch on the device: rows join it after their own prefill, and leave when they are done.

Axes: B rows of the batch, N rows of a prefill, C characters of a chunk, V vocabulary.
"""

from collections.abc import Sequence

import jax
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
from shakegpt_jax.inference.scoring import next_logits
from shakegpt_jax.model.layers import cast_blocks
from shakegpt_jax.serving.decoding_state import empty_state, put_rows, take_rows
from shakegpt_jax.serving.rows import Row

# Floating-point operations of one dispatch, about: a few tenths of a second, for which new requests
# wait at most.
_CPU_FLOPS, _FLOPS = 3e10, 1e13

# Reading the parameters takes as long as computing with them for this many rows, about.
_CHEAP_ROWS = 16

_SCORED = 1_024  # characters of a prompt to score in one step, at most

_GROUPS = (16, 4, 1)  # rows of a prefill; few, so that few programs are compiled


class Batch:
    """Up to `max_rows` rows that are decoded together, each from its own place in its window."""

    def __init__(self, lm: LanguageModel, max_rows: int):
        """Create an empty batch."""
        self.model, self.tokenizer = lm.model, lm.tokenizer
        self._lm_params = lm.params
        self._params = cast_blocks(lm.params, lm.config.model)
        self.max_rows = max_rows
        self.block_size = lm.config.model.block_size
        self.window_stride = default_window_stride(self.block_size)
        flops = _CPU_FLOPS if jax.default_backend() == "cpu" else _FLOPS
        self._budget = max(1, int(flops / (2 * lm.n_params)))  # characters of one dispatch
        self.n_window = _power_of_two(min(self._budget, _SCORED) // self.block_size)  # of one step
        self._longest_chunk = chunk_length(lm.params, self.window_stride)
        self._state: DecodingState | None = None
        self._slots: list[Row | None] = []

    def warm_up(self) -> None:
        """Compile all programs, which otherwise delays the first texts that need them."""
        model, params, vocab_size = self.model, self._params, self.model.vocab_size
        states = []
        for group, n_time in self._prefills():
            zeros_N = np.zeros(group, np.int32)
            state, _, _ = prefill(
                model,
                params,
                np.zeros((group, n_time), np.int32),
                zeros_N + 1,
                zeros_N.astype(np.uint32),
                zeros_N,
                _sampling([None] * group, vocab_size),
                with_log_probs=True,
            )
            if n_time == self._lengths()[0]:
                states.append(state)
        for n_row in self._sizes():
            state = empty_state(model, n_row)
            for new in states:
                state = put_rows(state, new, np.full(len(new.last_B), n_row, np.int32))
            for n_other in {*self._sizes()} - {n_row}:
                take_rows(state, np.zeros(n_other, np.int32))
            sampling = _sampling([None] * n_row, vocab_size)
            decode(model, params, state, sampling, self.chunk(n_row), with_log_probs=True)
        id_type = self.tokenizer.encode("").dtype
        for i in range(self.n_window.bit_length()):
            ids = np.zeros((2**i - 1) * self.window_stride + self.block_size, id_type)
            next_logits(model, self._lm_params, ids, stride=self.window_stride)

    @property
    def rows(self) -> list[Row]:
        """The rows in the batch."""
        return [row for row in self._slots if row]

    @property
    def n_free(self) -> int:
        """Number of rows that can join."""
        return self.max_rows - len(self.rows)

    def padded_context(self, row: Row) -> int:
        """Return the length of the window that a row is prefilled in."""
        n_context = context_length(row.length, self.block_size, self.window_stride)
        return padded_length(n_context, self.block_size)

    def _sizes(self) -> list[int]:
        """Return the numbers of slots that the batch may have; few, as for `_GROUPS`."""
        return [4**i for i in range(10) if 4**i < self.max_rows] + [self.max_rows]

    def _lengths(self) -> list[int]:
        """Return the lengths of the windows that rows are prefilled in."""
        lengths = {padded_length(n, self.block_size) for n in range(1, self.block_size + 1)}
        return sorted(lengths)

    def _prefills(self) -> list[tuple[int, int]]:
        """Return the rows and the length of each kind of prefill."""
        return [
            (group, n_time)
            for group in _GROUPS
            for n_time in self._lengths()
            if self.group_size(group, n_time) == group <= self.max_rows
        ]

    def group_size(self, n_row: int, n_time: int) -> int:
        """Return how many of `n_row` rows with windows of `n_time` to prefill together."""
        # A character of a prefill takes half the time of one that is decoded, about.
        n_most = 2 * self._budget // n_time
        return next(n for n in _GROUPS if n <= max(1, min(n_row, n_most)))

    def prefill(self, rows: Sequence[Row]) -> None:
        """Write the next character of each row; those that go on join the batch.

        Args:
            rows: as many as `group_size` says.
        """
        windows_NxT, lengths_N = align_contexts(
            [row.tail for row in rows],
            [row.length for row in rows],
            self.block_size,
            self.window_stride,
        )
        state, ids_Nx1, log_probs_Nx1xV = prefill(
            self.model,
            self._params,
            windows_NxT,
            lengths_N.astype(np.int32),
            np.array([row.seed for row in rows], np.uint32),
            np.array([row.n_noise for row in rows], np.int32),
            _sampling(rows, self.model.vocab_size),
            with_log_probs=True,
        )
        ids_Nx1, log_probs_Nx1xV = np.asarray(ids_Nx1), np.asarray(log_probs_Nx1xV)
        for row, n_context, ids_1, log_probs_1xV in zip(
            rows, lengths_N, ids_Nx1, log_probs_Nx1xV, strict=True
        ):
            row.room = self.block_size - int(n_context) + 1
            row.advance(ids_1, log_probs_1xV, self.tokenizer)
        self._join(state, rows)

    def decode(self) -> None:
        """Write the next characters of every row; those that are done or full leave the batch."""
        n_row = len(self._slots)
        n_chunk = self.chunk(n_row)
        self._state, ids_BxC, log_probs_BxCxV = decode(
            self.model,
            self._params,
            self._state,
            _sampling(self._slots, self.model.vocab_size),
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
        n_chunk = _power_of_two(self._budget // max(n_row, _CHEAP_ROWS))
        return min(self._longest_chunk, n_chunk)

    def remove(self, *, shrink: bool) -> list[Row]:
        """Take rows that are done or whose window is full out of the batch and return them.

        Args:
            shrink: let the batch become smaller, if the other rows fit.
        """
        removed = [row for row in self.rows if row.finished or row.room == 0]
        self._slots = [None if row in removed else row for row in self._slots]
        for row in removed:
            row.job.n_running -= 1
        if not self.rows:
            self.clear()
        elif shrink:
            self._resize(len(self.rows))
        return removed

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
        places_N = np.full(len(rows), len(self._slots), np.int32)  # outside: not copied
        for i, row in enumerate(rows):
            if row in going_on:
                places_N[i] = free.pop(0)
                self._slots[places_N[i]] = row
                row.job.n_running += 1
        self._state = put_rows(self._state, state, places_N)

    def _resize(self, n_row: int) -> None:
        """Change the number of slots to the next possible one, and move the rows to the front."""
        n_row = next(size for size in self._sizes() if size >= n_row)
        if n_row == len(self._slots):
            return
        if self._state is None:
            self._state, self._slots = empty_state(self.model, n_row), [None] * n_row
            return
        kept = [slot for slot, row in enumerate(self._slots) if row]
        taken_B = np.zeros(n_row, np.int32)
        taken_B[: len(kept)] = kept
        self._state = take_rows(self._state, taken_B)
        self._slots = [self._slots[slot] for slot in kept] + [None] * (n_row - len(kept))


def _power_of_two(n: int) -> int:
    """Return the largest power of two up to `n`, at least 1."""
    return 1 << (max(n, 1).bit_length() - 1)


def _sampling(rows: Sequence[Row | None], vocab_size: int) -> Sampling:
    requests = [row.job.request if row else None for row in rows]
    options = [r and Sampling.of(vocab_size, r.temperature, r.top_k, r.top_p) for r in requests]
    return Sampling.stack(options, vocab_size)
