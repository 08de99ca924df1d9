"""Sending answers to clients that take them, leave, or take nothing."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.serving import delivery
from shakegpt_jax.serving.api import ApiError, CompletionRequest, parse_completion
from shakegpt_jax.serving.rows import Job, Piece, describe

TOKENIZER = CharTokenizer("abc")
NAME = "café"


class FakeEngine:
    """Has one job, and does with it what a test says."""

    def __init__(self, begin: Callable[[Job], None]):
        self.begin = begin

    def submit(
        self, request: CompletionRequest, receive: Callable[[Piece | ApiError], None]
    ) -> Job:
        self.job = Job(request, receive)
        self.begin(self.job)
        return self.job


def write(job: Job) -> None:
    log_probs_TxV = np.array([[-0.7, -0.7, -np.inf], [-np.inf, 0, -np.inf]])
    records_T = describe(np.array([1, 2]), log_probs_TxV, 2)
    records_T["log_prob"][0] = np.nan
    job.deliver(Piece(0, records_T, "length"))


def fail(job: Job) -> None:
    job.receive(ApiError("shutting down", status=503))


def answer(
    engine: FakeEngine, *, stream: bool, takes: bool = True, leaves: bool = False
) -> list[dict[str, Any]]:
    """Return the ASGI messages that a client gets."""
    messages: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        await asyncio.sleep(0 if takes else 60)
        messages.append(message)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.01 if leaves else 60)
        return {"type": "http.disconnect"}

    async def run() -> None:
        body = {"prompt": "a", "stream": stream, "logprobs": 2}
        request = parse_completion(json.dumps(body).encode(), TOKENIZER, NAME)
        response = delivery.Delivery(engine, request, TOKENIZER, NAME)
        async with asyncio.timeout(10):
            await response({"type": "http"}, receive, send)
        assert len(asyncio.all_tasks()) <= 2  # the one that waits for the client ends too

    asyncio.run(run())
    assert engine.job.cancelled
    return messages


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_gets_an_answer(stream):
    start, *bodies = answer(FakeEngine(write), stream=stream)
    assert start["status"] == 200
    text = b"".join(message.get("body", b"") for message in bodies).decode()
    if stream:
        text, end = text.removeprefix("data: ").split("\n\n", maxsplit=1)
        assert end == "data: [DONE]\n\n"
    found = json.loads(text, parse_constant=pytest.fail)
    assert (found["model"], found["choices"][0]["text"]) == (NAME, "bc")
    assert found["choices"][0]["logprobs"] == {
        "tokens": ["b", "c"],
        "token_logprobs": [None, -9999.0],
        "top_logprobs": [None, {"b": 0.0, "a": -9999.0, "c": -9999.0}],
        "text_offset": [0, 1],
    }


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_takes_nothing_is_left_without_a_traceback(stream, monkeypatch):
    monkeypatch.setattr(delivery, "_STALL_SECONDS", 0.01)
    assert answer(FakeEngine(write), stream=stream, takes=False) == []


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_texts(stream):
    bodies = answer(FakeEngine(lambda job: None), stream=stream, leaves=True)[1:]
    assert bodies == []


def test_an_error_says_when_to_try_again():
    start, body = answer(FakeEngine(fail), stream=False)
    assert (start["status"], dict(start["headers"])[b"retry-after"]) == (503, b"2")
    assert json.loads(body["body"])["error"]["message"] == "shutting down"
