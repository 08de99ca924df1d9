"""The HTTP application, and running it on a port until a signal ends it."""

import asyncio
import concurrent.futures
import functools
import ipaddress
import json
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp

from shakegpt_jax.errors import UserError
from shakegpt_jax.inference import evaluation
from shakegpt_jax.serving.answers import Completion, Copies, Copy, Health, Model, ModelList
from shakegpt_jax.serving.api import (
    ApiError,
    CompletionBody,
    SearchRequest,
    check_model,
    parse,
    parse_completion,
)
from shakegpt_jax.serving.delivery import Delivery
from shakegpt_jax.serving.engine import Engine
from shakegpt_jax.serving.guard import Guard
from shakegpt_jax.serving.openapi import ApiRoute, describe_api
from shakegpt_jax.web.page import render_page
from shakegpt_jax.web.prompt_page import serving_page

_LAST_SECONDS = 1  # for sending the end of answers
_RUNNING = Gauge("shakegpt_texts_running", "Texts in the batch")
_WAITING = Gauge("shakegpt_texts_waiting", "Texts that wait for a place in the batch")


def bind(host: str, port: int) -> socket.socket:
    """Reserve a port, before the model is loaded, which takes longer."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as bound:  # closed if it cannot be bound
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            return bound.dup()
    except (OSError, UnicodeError) as error:  # the latter: a name with an empty or a long label
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on --host {host} --port {port}: {reason}") from error


def run_server(
    engine: Engine, bound: socket.socket, hosts: Sequence[str], origins: Sequence[str], grace: int
) -> None:
    """Serve on a socket from `bind` until SIGINT or SIGTERM; `Guard` explains the names."""
    app = Guard(application(engine), hosts, origins, any_address=_is_any(bound))
    n = engine.max_batch
    print(f"Compiling for up to {n} texts at a time (seconds; longer the first time).", flush=True)
    start = time.perf_counter()
    engine.start(warm_up=True)
    print(f"Compiled in {time.perf_counter() - start:.0f} s.", flush=True)
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=grace + _LAST_SECONDS,
    )
    _Server(config, engine, grace).run([bound])


class _Server(uvicorn.Server):
    """Lets texts under way go on for `grace` seconds after a signal."""

    def __init__(self, config: uvicorn.Config, engine: Engine, grace: int):
        super().__init__(config)
        self._engine, self._grace = engine, grace

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # More threads would only take turns, and the event loop would have to wait for each.
        workers = concurrent.futures.ThreadPoolExecutor(2, "worker")
        asyncio.get_running_loop().set_default_executor(workers)
        assert sockets
        host, port, *_ = sockets[0].getsockname()
        host = "localhost" if _is_any(sockets[0]) else host
        host = f"[{host}]" if ":" in host else host
        print(f"Open http://{host}:{port} (Ctrl-C stops the server)", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = ApiError("the server is shutting down", status=503)
        timer = asyncio.get_running_loop().call_later(self._grace, self._engine.end, ending)
        await super().shutdown(sockets)
        timer.cancel()
        self._engine.end(ending)
        await asyncio.to_thread(self._engine.join)
        print("Stopped.", flush=True)


def _is_any(bound: socket.socket) -> bool:
    return ipaddress.ip_address(bound.getsockname()[0]).is_unspecified


_READING_SECONDS = 30  # for a body
_MAX_SEARCHES = 8  # that run or wait
_ERRORS = ApiError, HTTPException, ClientDisconnect, Exception
_AROUND = 60  # characters of the training text before and after a stretch


def application(engine: Engine) -> Starlette:
    """Return the ASGI application that serves the model of an engine."""
    lm, created = engine.lm, int(time.time())
    page, policy = serving_page(lm)
    page_headers = {"content-security-policy": f"{policy}; frame-ancestors 'none'"}
    model = Model(lm.name, created)
    _RUNNING.set_function(lambda: engine.n_running)
    _WAITING.set_function(lambda: engine.n_waiting)
    searches, search_thread = asyncio.Semaphore(_MAX_SEARCHES), ThreadPoolExecutor(1, "search")
    training_text = functools.cache(lambda: evaluation.searchable_text(lm, lm.load_corpus()))

    def search(text: str) -> list[Copy]:
        source, found = training_text(), []
        for start, end, place in evaluation.copied_stretches(text, source):
            before = source[max(0, place - _AROUND) : place]
            after = source[place + end - start : place + end - start + _AROUND]
            found.append(Copy(start, end, place, before, after))
        return found

    async def show_page(request: Request) -> Response:
        """The page to play with."""
        return HTMLResponse(page, headers=page_headers)

    async def show_api(request: Request) -> Response:
        """This description, to read."""
        return HTMLResponse(api_page, headers={"content-security-policy": api_policy})

    async def describe(request: Request) -> Response:
        """This description, in JSON."""
        return Response(json.dumps(api), media_type="application/json")

    async def show_metrics(request: Request) -> Response:
        """Metrics for Prometheus."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    async def show_health(request: Request) -> Response:
        """The state of the server and the number of texts in progress or queued."""
        return _reply(Health(engine.n_text))

    async def list_models(request: Request) -> Response:
        """The model that is served, in a list."""
        return _reply(ModelList([model]))

    async def show_model(request: Request) -> Response:
        """The model that is served."""
        check_model(request.path_params["name"], lm.name)
        return _reply(model)

    async def complete(request: Request) -> ASGIApp:
        """Continue texts, or score them."""
        body = await _read(request)
        parsed = await asyncio.to_thread(parse_completion, body, lm.tokenizer, lm.name)
        return Delivery(engine, parsed, lm.tokenizer, lm.name)

    async def find_verbatim(request: Request) -> Response:
        """Find what a text has copied from the training text."""
        text = parse(await _read(request), SearchRequest).text
        if searches.locked():
            message = f"{_MAX_SEARCHES} searches wait; try again later"
            raise ApiError(message, status=429, code="rate_limit_exceeded")
        async with searches:
            try:
                loop = asyncio.get_running_loop()
                stretches = await loop.run_in_executor(search_thread, search, text)
            except UserError as error:
                message = f"the training text is not available: {error}"
                raise ApiError(message, status=404) from error
        return _reply(Copies(evaluation.SHORTEST_STRETCH, stretches))

    routes = [
        ApiRoute("/", show_page, "text/html"),
        ApiRoute(
            "/v1/completions",
            complete,
            "application/json",
            "text/event-stream",
            takes=CompletionBody,
            gives=Completion,
        ),
        ApiRoute("/v1/verbatim", find_verbatim, takes=SearchRequest, gives=Copies),
        ApiRoute("/v1/models", list_models, gives=ModelList),
        ApiRoute("/v1/models/{name:path}", show_model, gives=Model),
        ApiRoute("/health", show_health, gives=Health),
        ApiRoute("/metrics", show_metrics, "text/plain"),
        ApiRoute("/docs", show_api, "text/html"),
        ApiRoute("/openapi.json", describe),
    ]
    api = describe_api(lm.name, routes)
    api_page, api_policy = render_page("docs", "docs.js", "The API of shakegpt serve", api)
    app = Starlette(routes=routes, exception_handlers=dict.fromkeys(_ERRORS, _answer_error))
    app.router.redirect_slashes = False
    return app


def _reply(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def _read(request: Request) -> bytes:
    for encoding in request.headers.getlist("content-encoding"):
        if encoding.lower() != "identity":
            raise ApiError(f"Content-Encoding is {encoding:.40}; send it without", status=415)
    try:
        async with asyncio.timeout(_READING_SECONDS):
            return await request.body()
    except TimeoutError as error:
        message = f"the request body did not arrive within {_READING_SECONDS} seconds"
        raise ApiError(message, status=408) from error


def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ApiError):
        return error.to_response()
    if isinstance(error, HTTPException):
        path = request.url.path[:60]
        known = ", ".join(getattr(route, "path_format", "") for route in request.app.routes)
        advice = f"the routes are {known}"
        if path.startswith("/v1/chat/"):
            advice = "this is a base model, which continues texts: use /v1/completions"
        message = {
            404: f"there is nothing at {path}; {advice}",
            405: f"{path} does not take {request.method}",
        }.get(error.status_code, error.detail)
        return ApiError(message, status=error.status_code).to_response(error.headers)
    return ApiError("internal server error; see the server's log", status=500).to_response()
