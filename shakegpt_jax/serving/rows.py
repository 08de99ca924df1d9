"""Texts under way: what the engine needs to know of each, and the pieces that it delivers.

Axes: T characters, C characters of a chunk, V vocabulary, K most probable characters.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from prometheus_client import Counter, Histogram

from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.inference.sampling import Sampling, StopFilter
from shakegpt_jax.serving.api import ApiError, CompletionRequest

# Metrics that `/metrics` shows.
CHARACTERS = Counter("shakegpt_characters", "New characters of all texts")
FIRST_CHARACTER = Histogram(
    "shakegpt_first_character_seconds",
    "Time from a request to the first new character of each of its texts",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
)


def describe(ids_T: np.ndarray, log_probs_TxV: np.ndarray, k: int | None) -> np.ndarray:
    """Return (T,) records of characters: the field `id` and, unless k is None, three more.

    `log_prob` is the natural log-probability that the model gave the character, before temperature
    and filters; `top_ids` and `top` are the k most probable characters and theirs, best first.
    """
    if k is None:
        return ids_T.astype([("id", np.int32)])
    fields = [("id", "i4"), ("log_prob", "f4"), ("top_ids", "i4", (k,)), ("top", "f4", (k,))]
    records_T = np.empty(len(ids_T), fields)
    top_TxK = np.argsort(-log_probs_TxV, axis=1, kind="stable")[:, :k]
    records_T["id"], records_T["top_ids"] = ids_T, top_TxK
    records_T["log_prob"] = log_probs_TxV[np.arange(len(ids_T)), ids_T]
    records_T["top"] = np.take_along_axis(log_probs_TxV, top_TxK, 1)
    return records_T


@dataclasses.dataclass(frozen=True)
class Piece:
    """Successive characters of a text in the answer."""

    index: int  # of the text
    records_T: np.ndarray  # see `describe`
    finish_reason: Literal["stop", "length"] | None = None  # in the last piece of a text


class Job:
    """A request in the engine, whose thread calls `receive` with pieces or the error at the end."""

    def __init__(self, request: CompletionRequest, receive: Callable[[Piece | ApiError], None]):
        self.request, self.receive = request, receive
        self.submitted = time.monotonic()
        self.n_unfinished = request.n_text
        self.echo: Iterator[None] | None = None  # delivers the prompts, a part at a time
        self.cancelled = False  # set by any thread: nobody waits for the answer any more

    def deliver(self, piece: Piece) -> None:
        """Pass on what the engine has written."""
        self.n_unfinished -= piece.finish_reason is not None
        self.receive(piece)


class Row:
    """One text to write."""

    def __init__(self, job: Job, index: int, block_size: int):
        request = job.request
        self.job, self.index, self.block_size = job, index, block_size
        prompt = request.prompts[index // request.n]
        self.tail = np.asarray(prompt[-block_size:], np.int32)  # the latest ids, up to block_size
        self.length = len(prompt)  # characters of the text so far
        self.seed = request.sample_seed(index % request.n)
        self.n_noise = request.noise_offset  # index of the next character's noise
        self.remaining = request.max_tokens  # characters to write
        self.room = 0  # characters that still fit into the window
        self.sampling = Sampling(*(getattr(request, name) for name in Sampling._fields))
        stop = request.stop
        self._stop = StopFilter([stop] if isinstance(stop, str) else stop)
        self._held: list[np.ndarray] = []  # may begin a stop string

    @property
    def finished(self) -> bool:
        """True once all characters are written or nobody waits for them."""
        return self.remaining == 0 or self.job.cancelled

    def advance(
        self, ids_C: np.ndarray, log_probs_CxV: np.ndarray, tokenizer: CharTokenizer
    ) -> None:
        """Append what was generated, as far as it is wanted, and deliver it."""
        n_new = min(len(ids_C), self.room, self.remaining)
        ids_T, log_probs_TxV = ids_C[:n_new], log_probs_CxV[:n_new]
        self.tail = np.append(self.tail, ids_T)[-self.block_size :]
        if self.n_noise == self.job.request.noise_offset:
            FIRST_CHARACTER.observe(time.monotonic() - self.job.submitted)
        self.length, self.n_noise = self.length + n_new, self.n_noise + n_new
        self.room, self.remaining = self.room - n_new, self.remaining - n_new
        check_logits(log_probs_TxV)
        new_T = describe(ids_T, log_probs_TxV, self.job.request.logprobs)
        records_T = np.concatenate([*self._held, new_T])
        n_passed = len(self._stop.feed(tokenizer.decode(ids_T)))
        reason: Literal["stop", "length"] | None = None
        if self._stop.stopped:
            self.remaining, reason = 0, "stop"
        elif self.remaining == 0:
            n_passed, reason = len(records_T), "length"
        self._held = [records_T[n_passed:]]
        CHARACTERS.inc(n_passed)
        self.job.deliver(Piece(self.index, records_T[:n_passed], reason))


def check_logits(logits_TxV: np.ndarray) -> None:
    """Raise FloatingPointError if there are NaNs, which would be texts without meaning."""
    if np.isnan(logits_TxV).any():
        raise FloatingPointError("its logits are not numbers")
