"""The engine: one thread that writes the texts of all requests in one batch.

Between two chunks of the batch, new rows join it. What a row writes does not depend on the others,
up to rounding: see `inference.sampler`.

Axes: T characters, V vocabulary.
"""

import collections
import itertools
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.inference.scoring import next_logits
from shakegpt_jax.serving.api import ApiError, CompletionRequest
from shakegpt_jax.serving.batch import Batch
from shakegpt_jax.serving.rows import Job, Piece, Row, check_logits, describe

_JOINING_SECONDS = 1.5  # for which texts under way wait for those that join

_END = object()  # of an iterator


class Engine:
    """Runs jobs in a thread of its own."""

    def __init__(self, lm: LanguageModel, max_batch: int, max_queue: int):
        """Prepare to write `max_batch` texts at the same time while `max_queue` others wait."""
        self._lm, self._batch = lm, Batch(lm, max_batch)
        self._max_texts = max_batch + max_queue
        self._jobs: list[Job] = []  # all that are not finished
        self._new: list[Row] = []  # wait for their first window
        self._full: list[Row] = []  # wait for another window
        self._echoes: collections.deque[tuple[Job, Iterator[None]]] = collections.deque()
        self._incoming: list[Job] = []
        self._changed = threading.Condition()  # guards _incoming, n_text, and _error
        self.n_text = 0  # that are being written or wait
        self._error: ApiError | None = None  # why no more jobs are taken
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self, *, warm_up: bool = False) -> None:
        """Start the thread; first, compile all programs, which would delay the first texts."""
        if warm_up:
            self._batch.warm_up()
        self._thread.start()

    def submit(
        self, request: CompletionRequest, receive: Callable[[Piece | ApiError], None]
    ) -> Job:
        """Queue a request and return its job; may be called in any thread.

        Raises an `ApiError` if it has too many texts, too many wait, or the engine ends.
        """
        if request.n_text > self._max_texts:
            message = f"prompts times n is {request.n_text}; this server takes {self._max_texts}"
            raise ApiError(f"{message} at a time", param="n")
        with self._changed:
            if self._error:
                raise self._error
            if self.n_text + request.n_text > self._max_texts:
                message = f"{self.n_text} texts are being written or wait; try again later"
                raise ApiError(message, status=429, code="rate_limit_exceeded")
            self.n_text += request.n_text
            job = Job(request, receive)
            self._incoming.append(job)
            self._changed.notify()
        return job

    def end(self, error: ApiError) -> None:
        """End all jobs with an error and take no more; `join` waits for it."""
        with self._changed:
            self._error = error
            self._changed.notify()

    def join(self) -> None:
        """Wait until the engine has ended."""
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._incoming or self._jobs or self._error)
                incoming, self._incoming, error = self._incoming, [], self._error
            self._jobs.extend(incoming)
            if error:
                self._fail(error)
                return
            try:
                for job in incoming:
                    if job.request.echo:
                        self._echoes.append((job, self._echo(job)))
                    else:
                        self._new.extend(self._rows(job))
                self._step()
            except Exception as failure:  # too little memory, most probably
                reason = str(failure).split("\n")[0]
                self._batch.clear()
                self._fail(ApiError(f"the model failed: {reason}", status=500))

    def _echo(self, job: Job) -> Iterator[None]:
        """Deliver the prompts of a job, one scored part at each step, and then let it write."""
        request = job.request
        for i, ids in enumerate(request.prompts):
            for records_T in self._describe(ids, request.logprobs):
                for index in range(i * request.n, (i + 1) * request.n):
                    job.deliver(Piece(index, records_T))
                if request.logprobs is not None:  # which take time
                    yield
        if request.max_tokens:
            self._new.extend(self._rows(job))
            return
        for index in range(request.n_text):
            job.deliver(Piece(index, records_T[:0], "length"))

    def _rows(self, job: Job) -> list[Row]:
        return [Row(job, i, self._batch.block_size) for i in range(job.request.n_text)]

    def _describe(self, ids: np.ndarray, k: int | None) -> Iterator[np.ndarray]:
        """Describe a prompt, part by part, with the context that writing it would have.

        The log-probabilities of its first character are NaN.
        """
        lm, batch = self._lm, self._batch
        unknown = np.full((1, lm.tokenizer.vocab_size), np.nan, np.float32)
        done = 1 if k is not None else len(ids)
        yield describe(ids[:done], unknown, k)
        for start in itertools.count(step=batch.n_window * batch.window_stride):
            if done == len(ids):
                return
            end = start + (batch.n_window - 1) * batch.window_stride + batch.block_size
            scored = ids[start : min(end, len(ids) - 1)]
            logits_TxV = next_logits(lm.model, lm.params, scored, stride=batch.window_stride)
            check_logits(logits_TxV)
            new = ids[done : end + 1]
            yield describe(new, _log_softmax(logits_TxV[done - 1 - start :]), k)
            done += len(new)

    def _step(self) -> None:
        """Let go of what is finished, let rows join, and write one chunk."""
        self._drop_finished()
        if self._echoes:
            job, echo = self._echoes.popleft()
            if next(echo, _END) is not _END:
                self._echoes.append((job, echo))
        deadline = time.monotonic() + _JOINING_SECONDS
        # In turn, so that neither texts that begin nor texts that go on wait for long.
        while self._prefill(self._new) | self._prefill(self._full):
            if time.monotonic() > deadline:
                break
        if self._batch.rows:
            self._batch.decode()

    def _prefill(self, waiting: list[Row]) -> bool:
        """Prefill the next rows that wait; return whether there were any.

        Jobs with the fewest rows in the batch come first, and then those that came first.
        """
        n_running = collections.Counter(row.job for row in self._batch.rows)
        turns: dict[Row, int] = {}
        for row in waiting:
            turns[row] = n_running[row.job]
            n_running[row.job] += 1
        group = self._batch.prefill(sorted(waiting, key=turns.__getitem__))
        for row in group:
            del turns[row]
        waiting[:] = turns
        self._full.extend(row for row in group if not row.finished and row.room == 0)
        return bool(group)

    def _drop_finished(self) -> None:
        """Drop jobs that are finished or cancelled, with all that they have here."""
        # First: one that leaves from here on is dropped next time.
        finished = [job for job in self._jobs if job.cancelled or job.n_unfinished == 0]
        self._full.extend(row for row in self._batch.remove() if not row.finished)
        for waiting in (self._new, self._full):
            waiting[:] = [row for row in waiting if not row.job.cancelled]
        self._echoes = collections.deque(each for each in self._echoes if not each[0].cancelled)
        if not (self._new or self._full):
            self._batch.shrink()
        self._forget(finished)

    def _forget(self, jobs: list[Job]) -> None:
        self._jobs = [job for job in self._jobs if job not in jobs]
        with self._changed:
            self.n_text -= sum(job.request.n_text for job in jobs)

    def _fail(self, error: ApiError) -> None:
        """End all jobs with an error."""
        for waiting in (self._new, self._full, self._echoes):
            waiting.clear()
        for job in self._jobs:
            job.receive(error)
        self._forget(self._jobs)


def _log_softmax(logits_TxV: np.ndarray) -> np.ndarray:
    logits_TxV = logits_TxV - logits_TxV.max(1, keepdims=True)
    return logits_TxV - np.log(np.exp(logits_TxV).sum(1, keepdims=True))
