"""The engine: one thread that writes the texts of all requests in one batch.

Between two chunks of the batch, new rows join it. What a row writes does not depend on the others,
up to rounding: see `inference.sampler`.
"""

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.serving.api_error import ApiError
from shakegpt_jax.serving.batch import Batch
from shakegpt_jax.serving.requests import CompletionRequest
from shakegpt_jax.serving.rows import Job, LogProbs, Piece, Row, make_rows
from shakegpt_jax.serving.scoring import score_prompt

_JOINING_SECONDS = 1.5  # for which texts under way wait for those that join

_END = object()  # of an iterator


class Engine:
    """Runs jobs in a thread of its own."""

    def __init__(self, lm: LanguageModel, max_batch: int, max_queue: int):
        """Prepare an engine.

        Args:
            lm: the model.
            max_batch: texts to write at the same time.
            max_queue: texts to keep waiting.
        """
        self._batch = Batch(lm, max_batch)
        self._lm = lm
        self._max_texts = max_batch + max_queue
        self._jobs: list[Job] = []  # all that are not finished
        self._waiting: tuple[list[Row], list[Row]] = [], []  # for their first window; for another
        self._scoring: dict[Job, Iterator[None]] = {}
        self._incoming: list[Job] = []
        self._changed = threading.Condition()  # guards _incoming, _n_text, and _error
        self._n_text = 0  # not finished
        self._error: ApiError | None = None  # why no more jobs are taken
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def warm_up(self) -> None:
        """Compile all programs, which would delay the first texts."""
        self._batch.warm_up()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def n_text(self) -> int:
        """Number of texts that are being written or wait."""
        return self._n_text

    def submit(self, request: CompletionRequest, notify: Callable[[], None]) -> Job:
        """Queue a request and return its job; may be called in any thread.

        Raises:
            ApiError: if it has too many texts, too many wait already, or the engine ends.
        """
        if request.n_text > self._max_texts:
            message = f"prompts times n is {request.n_text}; this server takes {self._max_texts}"
            raise ApiError(f"{message} at a time", param="n")
        with self._changed:
            if self._error:
                raise self._error
            if self._n_text + request.n_text > self._max_texts:
                message = f"{self._n_text} texts are being written or wait; try again later"
                raise ApiError(message, status=429, code="rate_limit_exceeded")
            self._n_text += request.n_text
            job = Job(request, notify)
            self._incoming.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Stop working on a job, at the end of the chunk under way."""
        job.cancelled = True

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
                while not (self._incoming or self._jobs or self._error):
                    self._changed.wait()
                incoming, self._incoming, error = self._incoming, [], self._error
            self._jobs.extend(incoming)
            if error:
                self._fail(error)
                return
            try:
                for job in incoming:
                    self._begin(job)
                self._step()
            except Exception as failure:  # too little memory, most probably
                reason = str(failure).split("\n")[0]
                self._batch.clear()
                self._fail(ApiError(f"the model failed: {reason}", status=500))

    def _begin(self, job: Job) -> None:
        request = job.request
        if not request.echo:
            self._waiting[0].extend(make_rows(job, self._batch.block_size))
        elif request.logprobs is None:
            for index in range(job.n_unfinished):
                job.add(Piece(index, request.prompts[index // request.n]))
            self._after_echo(job)
        else:
            self._scoring[job] = self._score(job)

    def _score(self, job: Job) -> Iterator[None]:
        """Score the prompts of a job, a part at each step, and then let it write."""
        request, batch = job.request, self._batch
        for i, ids in enumerate(request.prompts):
            pieces = score_prompt(
                batch.model,
                self._lm.params,
                ids,
                batch.n_window,
                batch.window_stride,
                request.logprobs or 0,
            )
            for piece in pieces:
                for sample in range(request.n):
                    job.add(piece._replace(text=i * request.n + sample))
                job.notify()
                yield
        self._after_echo(job)

    def _after_echo(self, job: Job) -> None:
        rows = make_rows(job, self._batch.block_size)
        if job.request.max_tokens:
            self._waiting[0].extend(rows)
            return
        for row in rows:
            nothing = row.tail[:0]
            log_probs = None
            if (k := job.request.logprobs) is not None:
                empty = np.zeros((0, self._batch.model.vocab_size), np.float32)
                log_probs = LogProbs.of(empty, nothing, k)
            job.add(Piece(row.index, nothing, log_probs, "length"))
        job.notify()

    def _step(self) -> None:
        """Let go of what is finished, let rows join, and write one chunk."""
        self._drop_finished()
        self._score_some()
        deadline = time.monotonic() + _JOINING_SECONDS
        new, full = self._waiting
        # In turn, so that neither texts that begin nor texts that go on wait for long.
        while self._prefill(new) | self._prefill(full):
            if time.monotonic() > deadline:
                break
        if self._batch.rows:
            self._batch.decode()
            self._notify(self._batch.rows)
            removed = self._batch.remove(shrink=not any(self._waiting))
            self._waiting[1].extend(row for row in removed if not row.finished)

    def _score_some(self) -> None:
        """Let the next job in turn score a part of its prompts."""
        if self._scoring:
            job = next(iter(self._scoring))
            scoring = self._scoring.pop(job)
            if next(scoring, _END) is not _END:
                self._scoring[job] = scoring

    def _prefill(self, waiting: list[Row]) -> bool:
        """Prefill the next rows that wait; return whether there were any.

        Jobs with the fewest rows in the batch come first, and then those that came first.
        """
        n_free = self._batch.n_free
        if not waiting or not n_free:
            return False
        n_running: dict[Job, int] = {}

        def turn(row: Row) -> int:
            n_running[row.job] = n_running.get(row.job, row.job.n_running) + 1
            return n_running[row.job]

        ordered = [
            row for _, row in sorted(((turn(row), row) for row in waiting), key=lambda x: x[0])
        ]
        n_time = self._batch.padded_context(ordered[0])
        group = [row for row in ordered if self._batch.padded_context(row) == n_time][:n_free]
        group = group[: self._batch.group_size(len(group), n_time)]
        chosen = set(map(id, group))
        waiting[:] = [row for row in waiting if id(row) not in chosen]
        self._batch.prefill(group)
        self._notify(group)
        self._waiting[1].extend(row for row in group if not row.finished and row.room == 0)
        return True

    def _notify(self, rows: list[Row]) -> None:
        for job in dict.fromkeys(row.job for row in rows):
            job.notify()

    def _drop_finished(self) -> None:
        """Drop jobs that are finished or cancelled, with all that they have here."""
        # First: one that leaves from here on is dropped next time.
        finished = [job for job in self._jobs if job.cancelled or job.n_unfinished == 0]
        for waiting in self._waiting:
            waiting[:] = [row for row in waiting if not row.job.cancelled]
        self._scoring = {job: each for job, each in self._scoring.items() if not job.cancelled}
        if any(row.finished for row in self._batch.rows):
            self._batch.remove(shrink=True)
        self._forget(finished)

    def _forget(self, jobs: list[Job]) -> None:
        self._jobs = [job for job in self._jobs if job not in jobs]
        with self._changed:
            self._n_text -= sum(job.request.n_text for job in jobs)

    def _fail(self, error: ApiError) -> None:
        """End all jobs with an error."""
        for waiting in self._waiting:
            waiting.clear()
        self._scoring.clear()
        for job in self._jobs:
            job.error = error
            job.notify()
        self._forget(self._jobs)
