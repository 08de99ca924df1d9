"""The engine: one thread that writes the texts of all requests in one batch.

Between two chunks of the batch, new rows join it. What a row writes does not depend on the others,
up to rounding: see `inference.sampler`.

Axes: T characters, V vocabulary.
"""

import collections
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
from scipy.special import log_softmax

from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.inference.scoring import next_logits
from shakegpt_jax.serving.api import ApiError, CompletionRequest
from shakegpt_jax.serving.batch import Batch
from shakegpt_jax.serving.rows import Job, Piece, Row, check_logits, describe

_JOINING_SECONDS = 1.5  # for which texts under way wait for those that join


class Engine:
    """Runs jobs in a thread of its own."""

    def __init__(self, lm: LanguageModel, max_batch: int, max_queue: int):
        """Prepare to write `max_batch` texts at the same time while `max_queue` others wait."""
        self.lm, self.max_batch, self._batch = lm, max_batch, Batch(lm, max_batch)
        self._max_texts = max_batch + max_queue
        self._jobs: list[Job] = []  # all that are not finished
        self._waiting: list[Row] = []  # for their first window or another one
        self._incoming: list[Job] = []
        self._changed = threading.Condition()  # guards _incoming, n_text, and _error
        self.n_text = 0  # that are being written or wait
        self._error: ApiError | None = None  # why no more jobs are taken
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def n_running(self) -> int:
        """Number of texts in the batch; may be read in any thread."""
        return sum(not row.finished for row in self._batch.rows)

    @property
    def n_waiting(self) -> int:
        """Number of unfinished texts that are not in the batch; may be read in any thread."""
        jobs = [*self._jobs, *self._incoming]
        n_unfinished = sum(job.n_unfinished for job in jobs if not job.cancelled)
        return max(0, n_unfinished - self.n_running)

    def start(self, *, warm_up: bool = False) -> None:
        """Start the thread; first, compile all programs, which would delay the first texts."""
        if warm_up:
            self._batch.warm_up()
        self._thread.start()

    def submit(
        self, request: CompletionRequest, receive: Callable[[Piece | ApiError], None]
    ) -> Job:
        """Queue a request, or refuse it, and return its job; may be called in any thread."""
        if request.n_text > self._max_texts:
            message = f"prompts times n is {request.n_text}; this server takes {self._max_texts}"
            raise ApiError(f"{message} at a time", param="n")
        with self._changed:
            if self._error:
                raise self._error
            if self.n_text + request.n_text > self._max_texts:
                message = f"{self.n_text} texts are running or queued; try again later"
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
                        job.echo = self._echo(job)
                    else:
                        self._waiting.extend(self._rows(job))
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
        job.echo = None
        if request.max_tokens:
            self._waiting.extend(self._rows(job))
            return
        for index in range(request.n_text):
            job.deliver(Piece(index, records_T[:0], "length"))

    def _rows(self, job: Job) -> list[Row]:
        return [Row(job, i, self._batch.block_size) for i in range(job.request.n_text)]

    def _describe(self, ids: np.ndarray, k: int | None) -> Iterator[np.ndarray]:
        """Describe a prompt in parts, as if it were being written; NaN for its first character."""
        lm, stride = self.lm, self._batch.window_stride
        unknown = np.full((1, lm.tokenizer.vocab_size), np.nan, np.float32)
        start, done = 0, 1 if k is not None else len(ids)
        yield describe(ids[:done], unknown, k)
        step, overlap = self._batch.n_window * stride, self._batch.block_size - stride
        while done < len(ids):
            scored = ids[start : start + step + overlap]
            logits_TxV = next_logits(*lm.for_decoding, scored, stride=stride)
            check_logits(logits_TxV)
            new = ids[done : start + len(scored) + 1]
            log_probs_TxV = log_softmax(logits_TxV[done - 1 - start :][: len(new)], axis=1)
            yield describe(new, log_probs_TxV, k)
            start, done = start + step, done + len(new)

    def _step(self) -> None:
        """Drop finished jobs, admit waiting rows, and decode one chunk."""
        # First: a job that is cancelled from here on is forgotten next time.
        finished = [job for job in self._jobs if job.cancelled or job.n_unfinished == 0]
        rows = [*self._waiting, *self._batch.remove()]
        self._waiting = [row for row in rows if not row.finished]
        if not self._waiting:
            self._batch.resize()
        self._forget(finished)
        for job in self._jobs:
            if job.echo:
                next(job.echo, None)
                self._jobs.remove(job)
                self._jobs.append(job)  # the others come first next time
                break
        deadline = time.monotonic() + _JOINING_SECONDS
        while self._prefill() and time.monotonic() < deadline:
            pass
        if self._batch.rows:
            self._batch.decode()

    def _prefill(self) -> bool:
        """Prefill the next rows that wait; return whether there were any.

        Jobs with the fewest rows in the batch come first; their rows take turns.
        """
        n_running = collections.Counter(row.job for row in self._batch.rows)
        turns: dict[Row, int] = {}
        for row in self._waiting:
            turns[row] = n_running[row.job]
            n_running[row.job] += 1
        group = self._batch.prefill(sorted(turns, key=turns.__getitem__))
        for row in group:
            del turns[row]
        self._waiting = [*turns, *(row for row in group if not row.finished and row.room == 0)]
        return bool(group)

    def _forget(self, jobs: list[Job]) -> None:
        self._jobs = [job for job in self._jobs if job not in jobs]
        with self._changed:
            self.n_text -= sum(job.request.n_text for job in jobs)

    def _fail(self, error: ApiError) -> None:
        """End all jobs with an error."""
        self._waiting.clear()
        for job in self._jobs:
            job.receive(error)
        self._forget(self._jobs)
