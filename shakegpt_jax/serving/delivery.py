"""Sending what the engine writes, as it comes or as a whole, for as long as the client is there."""

import asyncio
import concurrent.futures
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.serving.api_error import ApiError, error_response
from shakegpt_jax.serving.engine import Engine
from shakegpt_jax.serving.requests import CompletionRequest
from shakegpt_jax.serving.responses import Answer
from shakegpt_jax.serving.rows import Job, Piece

T = TypeVar("T")

_STALL_SECONDS = 60  # after which a client that takes nothing is disconnected
_EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),
]


class Workers:
    """Two threads for work that would hold up the event loop.

    More would only take turns, and the event loop would have to wait for each.
    """

    def __init__(self) -> None:
        """Start threads when they are needed."""
        self._threads = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="worker")

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)


class CompletionResponse(Response):
    """The answer to a completion request. Its texts are written while it is sent."""

    def __init__(
        self,
        engine: Engine,
        request: CompletionRequest,
        tokenizer: CharTokenizer,
        name: str,
        workers: Workers,
    ):
        """Submit the request to the engine.

        Raises:
            ApiError: if it cannot take it.
        """
        self.status_code, self.background = 200, None
        loop, self._arrived = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            loop.call_soon_threadsafe(self._arrived.set)

        self._engine, self._request, self._workers = engine, request, workers
        self._answer = Answer(request, tokenizer, name)
        self._job = engine.submit(request, notify)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, until the client leaves or takes nothing any more."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(_STALL_SECONDS):
                await send(message)

        deliver = self._stream if self._request.stream else self._send_whole
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as presence:
                watcher = asyncio.create_task(_watch(receive, presence))
                try:
                    await deliver(scope, receive, send_in_time)
                finally:
                    watcher.cancel()
                    self._engine.cancel(self._job)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_event(text: str) -> None:
            body = f"data: {text}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})

        await send({"type": "http.response.start", "status": 200, "headers": _EVENT_STREAM})
        try:
            async for pieces in self._pieces():
                for piece in pieces:
                    await send_event(await self._make(self._answer.chunk, piece))
            if self._request.include_usage:
                await send_event(self._answer.usage_chunk())
            await send_event("[DONE]")
        except ApiError as error:
            await send_event(json.dumps(error.to_json()))
        await send({"type": "http.response.body"})

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async for pieces in self._pieces():
                for piece in pieces:
                    await self._make(self._answer.add, piece)
            response = Response(self._answer.whole(), media_type="application/json")
        except ApiError as error:
            response = error_response(error)
        await response(scope, receive, send)

    async def _pieces(self) -> AsyncIterator[list[Piece]]:
        """Yield the pieces of the job as they come.

        Raises:
            ApiError: if the engine ends the job.
        """
        job: Job = self._job
        finished = False
        while not finished:
            await self._arrived.wait()
            self._arrived.clear()
            finished = job.n_unfinished == 0  # before taking: then nothing is left behind
            error = job.error
            if pieces := job.take():
                yield pieces
            if error and not finished:
                raise error

    async def _make(self, make: Callable[[Piece], T], piece: Piece) -> T:
        """Make JSON, which takes long with log-probabilities."""
        if piece.log_probs is None:
            return make(piece)
        return await self._workers.run(make, piece)


async def _watch(receive: Receive, presence: asyncio.Timeout) -> None:
    """End the presence of a client as soon as it leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    presence.reschedule(asyncio.get_running_loop().time())
