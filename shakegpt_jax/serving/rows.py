"""Texts under way: what the engine needs to know of each, and what it has produced so far.

Axes: T characters, V vocabulary, K most probable characters.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.inference.sampling import StopFilter
from shakegpt_jax.serving.api_error import ApiError
from shakegpt_jax.serving.requests import CompletionRequest


class LogProbs(NamedTuple):
    """Natural log-probabilities that the model gave characters, before temperature and filters."""

    chosen_T: np.ndarray  # of the characters themselves; NaN: unknown
    top_ids_TxK: np.ndarray  # the most probable characters, best first
    top_TxK: np.ndarray

    @classmethod
    def of(cls, log_probs_TxV: np.ndarray, ids_T: np.ndarray, k: int) -> "LogProbs":
        """Keep those of some ids and of the `k` most probable characters."""
        order_TxV = np.argsort(-log_probs_TxV, axis=1, kind="stable")
        top_ids_TxK = order_TxV[:, :k].astype(np.int32)  # a view would keep all of it
        chosen_T = np.take_along_axis(log_probs_TxV, ids_T[:, None].astype(np.int64), 1)[:, 0]
        return cls(chosen_T, top_ids_TxK, np.take_along_axis(log_probs_TxV, top_ids_TxK, 1))


class Piece(NamedTuple):
    """Successive characters of a text in the answer."""

    text: int  # its index in the answer
    ids_T: np.ndarray
    log_probs: LogProbs | None = None
    finish_reason: str | None = None  # "stop" or "length" in the last piece of a text

    def cut(self, n: int) -> "tuple[Piece, Piece]":
        """Return the first `n` characters and the rest."""
        first, rest = (
            self._replace(
                ids_T=self.ids_T[part],
                log_probs=self.log_probs and LogProbs(*(a[part] for a in self.log_probs)),
            )
            for part in (slice(n), slice(n, None))
        )
        return first, rest

    @staticmethod
    def concatenate(pieces: "Sequence[Piece]") -> "Piece":
        """Return one piece of several of the same text."""
        log_probs = None
        if pieces[0].log_probs:
            arrays = zip(*(piece.log_probs or () for piece in pieces), strict=True)
            log_probs = LogProbs(*map(np.concatenate, arrays))
        return pieces[-1]._replace(
            ids_T=np.concatenate([piece.ids_T for piece in pieces]), log_probs=log_probs
        )


class Job:
    """A completion request on its way through the engine.

    The engine adds pieces and calls `notify`; another thread takes them.
    """

    def __init__(self, request: CompletionRequest, notify: Callable[[], None]):
        """Describe a job; `notify` is called in the engine's thread and must return at once."""
        self.request, self.notify = request, notify
        self.n_unfinished = request.n_text
        self.n_running = 0  # rows in the batch
        self.cancelled = False  # set by any thread: nobody waits for the answer any more
        self.error: ApiError | None = None  # why there will be no more pieces
        self._pieces: collections.deque[Piece] = collections.deque()

    def add(self, piece: Piece) -> None:
        """Add what the engine has produced."""
        self._pieces.append(piece)
        self.n_unfinished -= piece.finish_reason is not None

    def take(self) -> list[Piece]:
        """Remove and return the pieces so far."""
        return [self._pieces.popleft() for _ in range(len(self._pieces))]


@dataclasses.dataclass(eq=False)
class Row:
    """One text to write."""

    job: Job
    index: int  # in the answer
    tail: np.ndarray  # the latest ids, up to block_size
    length: int  # characters of the text so far, prompt included
    seed: int
    n_noise: int  # index of the next character's noise
    remaining: int  # characters to write
    stop: StopFilter | None
    block_size: int
    room: int = 0  # characters that still fit into the window
    held: Piece | None = None  # may be the beginning of a stop string

    @property
    def finished(self) -> bool:
        """True once all characters are written or nobody waits for them."""
        return self.remaining == 0 or self.job.cancelled

    def advance(
        self, ids_C: np.ndarray, log_probs_CxV: np.ndarray, tokenizer: CharTokenizer
    ) -> None:
        """Append what was generated, as far as it is wanted, and pass it on to the job."""
        n_new = min(len(ids_C), self.room, self.remaining)
        ids_T = ids_C[:n_new].copy()  # a view would keep those of the whole batch
        self.tail = np.append(self.tail, ids_T)[-self.block_size :]
        self.length, self.n_noise = self.length + n_new, self.n_noise + n_new
        self.room, self.remaining = self.room - n_new, self.remaining - n_new
        k = self.job.request.logprobs
        log_probs = None if k is None else LogProbs.of(log_probs_CxV[:n_new], ids_T, k)
        piece = Piece(self.index, ids_T, log_probs, None if self.remaining else "length")
        self.job.add(self._before_stop(piece, tokenizer) if self.stop else piece)

    def _before_stop(self, piece: Piece, tokenizer: CharTokenizer) -> Piece:
        """Return what can be passed on: what may become a stop string is held back."""
        assert self.stop
        n_passed = len(self.stop.feed(tokenizer.decode(piece.ids_T)))
        piece = piece if self.held is None else Piece.concatenate([self.held, piece])
        if self.stop.stopped:
            self.remaining = 0
            return piece.cut(n_passed)[0]._replace(finish_reason="stop")
        if self.remaining == 0:
            return piece
        passed, self.held = piece.cut(n_passed)
        return passed


def make_rows(job: Job, block_size: int) -> list[Row]:
    """Return the rows of a job, in the order of the answer."""
    request = job.request
    return [
        Row(
            job=job,
            index=i * request.n + sample,
            tail=np.asarray(prompt[-block_size:], np.int32),
            length=len(prompt),
            seed=request.sample_seed(sample),
            n_noise=request.noise_offset,
            remaining=request.max_tokens,
            stop=StopFilter(request.stop) if request.stop else None,
            block_size=block_size,
        )
        for i, prompt in enumerate(request.prompts)
        for sample in range(request.n)
    ]
