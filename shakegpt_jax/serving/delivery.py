"""Sending what the engine writes, as it comes or as a whole, for as long as the client is there."""

import asyncio
import concurrent.futures
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.serving.api_error import ApiError
from shakegpt_jax.serving.engine import Engine
from shakegpt_jax.serving.requests import CompletionRequest
from shakegpt_jax.serving.responses import Answer
from shakegpt_jax.serving.rows import Job, Piece

T = TypeVar("T")

_STALL_SECONDS = 60  # after which a client that takes nothing is given up
_EVENT_STREAM = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}


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
        """Send the answer, until the client leaves."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_until_disconnected, receive, group.cancel_scope)
                await (self._stream if self._request.stream else self._send_whole)(send)
                group.cancel_scope.cancel()
        except* TimeoutError:  # it takes nothing any more
            pass
        finally:
            self._engine.cancel(self._job)

    async def _stream(self, send: Send) -> None:
        await _send(send, _start(200, _EVENT_STREAM))
        try:
            async for pieces in self._pieces():
                for piece in pieces:
                    await _send(send, _event(await self._make(self._answer.chunk, piece)))
            if self._request.include_usage:
                await _send(send, _event(self._answer.usage_chunk()))
            await _send(send, _event("[DONE]"))
        except ApiError as error:
            await _send(send, _event(json.dumps(error.to_json())))
        await _send(send, {"type": "http.response.body"})

    async def _send_whole(self, send: Send) -> None:
        status = 200
        try:
            async for pieces in self._pieces():
                for piece in pieces:
                    await self._make(self._answer.add, piece)
            body = self._answer.whole().encode()
        except ApiError as error:
            status, body = error.status, json.dumps(error.to_json()).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        await _send(send, _start(status, headers))
        await _send(send, {"type": "http.response.body", "body": body})

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


async def _until_disconnected(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _send(send: Send, message: Any) -> None:
    with anyio.fail_after(_STALL_SECONDS):
        await send(message)


def _start(status: int, headers: dict[str, str]) -> dict[str, Any]:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}


def _event(text: str) -> dict[str, Any]:
    return {"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True}
