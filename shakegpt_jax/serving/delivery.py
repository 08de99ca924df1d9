"""Answers in the shape of OpenAI's `/v1/completions`, sent while they are written.

Axes: T characters.
"""

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.serving.answers import Choice, Completion, LogProbs, Usage
from shakegpt_jax.serving.api import ApiError, CompletionRequest
from shakegpt_jax.serving.engine import Engine
from shakegpt_jax.serving.rows import Piece

_STALL_SECONDS = 60  # after which a client that stops reading is disconnected
_DIGITS = 6  # of log-probabilities, after the point
_LEAST = -9999.0  # in place of minus infinity, which JSON lacks


class Delivery:
    """The answer to a completion request, an ASGI application; it is sent while it is written."""

    def __init__(
        self, engine: Engine, request: CompletionRequest, tokenizer: CharTokenizer, name: str
    ):
        """Submit the request to the engine, which may refuse it with an `ApiError`."""
        self._request, self._tokenizer, self._name = request, tokenizer, name
        self._id, self._created = f"cmpl-{secrets.token_hex(12)}", int(time.time())
        self._lengths = [0] * request.n_text  # characters so far
        loop, self._received = asyncio.get_running_loop(), asyncio.Queue[Piece | ApiError]()

        def receive(piece: Piece | ApiError) -> None:
            loop.call_soon_threadsafe(self._received.put_nowait, piece)

        self._job = engine.submit(request, receive)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, until the client leaves or stops reading."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(_STALL_SECONDS):
                await send(message)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            presence.reschedule(asyncio.get_running_loop().time())

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as presence:
                watcher = asyncio.create_task(watch())
                try:
                    response = await self._respond()
                    await response(scope, receive, send_in_time)
                finally:
                    watcher.cancel()
                    self._job.cancelled = True

    async def _respond(self) -> Response:
        if self._request.stream:
            headers = {"x-accel-buffering": "no"}
            return StreamingResponse(self._events(), 200, headers, "text/event-stream")
        pieces: list[list[Piece]] = [[] for _ in range(self._request.n_text)]
        try:
            async for piece in self._pieces():
                pieces[piece.index].append(piece)
        except ApiError as error:
            return error.to_response()
        body = await asyncio.to_thread(self._whole, pieces)
        return Response(body, media_type="application/json")

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._pieces():
                if self._request.logprobs is None:
                    yield _event(self._chunk(piece))
                else:  # which take long
                    yield _event(await asyncio.to_thread(self._chunk, piece))
            if self._request.stream_options.include_usage:
                yield _event(self._whole([]))
            yield _event(b"[DONE]")
        except ApiError as error:
            yield _event(error.to_json())

    async def _pieces(self) -> AsyncIterator[Piece]:
        """Yield the pieces of the job as they come; raise the `ApiError` that ends it."""
        n_unfinished = self._request.n_text
        while n_unfinished:
            received = await self._received.get()
            if isinstance(received, ApiError):
                raise received
            n_unfinished -= received.finish_reason is not None
            yield received

    def _chunk(self, piece: Piece) -> bytes:
        """Return the next chunk of a stream."""
        options, choices = self._request.stream_options, [self._choice([piece])]
        if not options.include_usage:
            return self._encode(choices, UNSET)
        return self._encode(choices, self._usage() if options.continuous_usage_stats else None)

    def _whole(self, pieces: Sequence[Sequence[Piece]]) -> bytes:
        """Return the answer of the pieces of each text, or of none: the last chunk of a stream."""
        return self._encode([self._choice(each) for each in pieces], self._usage())

    def _encode(self, choices: list[Choice], usage: Usage | UnsetType | None) -> bytes:
        completion = Completion(self._id, self._created, self._name, choices, usage)
        return msgspec.json.encode(completion)

    def _usage(self) -> Usage:
        n_prompt = sum(map(len, self._request.prompts))
        n_new = sum(self._lengths) - n_prompt * self._request.n * self._request.echo
        return Usage(n_prompt, n_new, n_prompt + n_new)

    def _choice(self, pieces: Sequence[Piece]) -> Choice:
        index = pieces[0].index
        records_T = np.concatenate([piece.records_T for piece in pieces])
        text, offset = self._tokenizer.decode(records_T["id"]), self._lengths[index]
        self._lengths[index] += len(text)
        log_probs = None
        if self._request.logprobs is not None:
            chosen, tops = _rounded(records_T["log_prob"]), _rounded(records_T["top"])
            each_top = zip(text, chosen, records_T["top_ids"].tolist(), tops, strict=True)
            log_probs = LogProbs(
                list(text),
                chosen,  # NaN becomes null
                [self._top(*each) for each in each_top],
                list(range(offset, offset + len(text))),
            )
        seed = self._request.sample_seed(index % self._request.n)
        return Choice(index, text, log_probs, pieces[-1].finish_reason, seed)

    def _top(
        self, character: str, log_prob: float, ids: list[int], log_probs: list[float]
    ) -> msgspec.Raw | None:
        """Return the most probable characters, already in JSON, which needs less memory."""
        if math.isnan(log_prob):
            return None
        names = self._tokenizer.vocabulary
        top = {names[i]: each for i, each in zip(ids, log_probs, strict=True)}
        return msgspec.Raw(msgspec.json.encode(top | {character: log_prob}))


def _rounded(log_probs: np.ndarray) -> Any:
    return np.maximum(log_probs.astype(np.float64), _LEAST).round(_DIGITS).tolist()


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
