"""The HTTP application: its routes, and the errors of all of them."""

import asyncio
import concurrent.futures
import functools
import time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from shakegpt_jax.errors import UserError
from shakegpt_jax.inference.evaluation import (
    SHORTEST_STRETCH,
    check_searchable,
    copied_stretches,
)
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.serving.api import ApiError, SearchRequest, parse, parse_completion
from shakegpt_jax.serving.delivery import Delivery
from shakegpt_jax.serving.engine import Engine
from shakegpt_jax.web.serving_page import serving_page

_READING_SECONDS = 30  # for a body
_MAX_SEARCHES = 8  # that run or wait
_AROUND = 60  # characters of the training text before and after a stretch


class App:
    """The answers of a server, by route."""

    def __init__(self, lm: LanguageModel, engine: Engine):
        self._lm, self._engine = lm, engine
        self._page, self._policy = serving_page(lm)
        model = {"id": lm.name, "object": "model", "owned_by": "shakegpt_jax"}
        self._model = {**model, "created": int(time.time())}
        self._search_thread = concurrent.futures.ThreadPoolExecutor(1, "search")
        self._n_search = 0

    def application(self) -> Starlette:
        """Return the ASGI application."""
        app = Starlette(
            routes=[
                Route("/", self._show_page),
                Route("/health", self._show_health),
                Route("/v1/models", self._list_models),
                Route("/v1/models/{name:path}", self._show_model),
                Route("/v1/completions", self._complete, methods=["POST"]),
                Route("/v1/verbatim", self._find_verbatim, methods=["POST"]),
            ],
            exception_handlers={
                ApiError: _answer_api_error,
                HTTPException: _answer_http_error,
                Exception: _answer_failure,
            },
        )
        app.router.redirect_slashes = False
        return app

    async def _show_page(self, request: Request) -> Response:
        policy = f"{self._policy}; frame-ancestors 'none'"
        return HTMLResponse(self._page, headers={"content-security-policy": policy})

    async def _show_health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "texts": self._engine.n_text})

    async def _list_models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model]})

    async def _show_model(self, request: Request) -> Response:
        if (name := request.path_params["name"]) != self._lm.name:
            message = f"the model {name!r} is not served here; use {self._lm.name!r}"
            raise ApiError(message, status=404, param="model", code="model_not_found")
        return JSONResponse(self._model)

    async def _complete(self, request: Request) -> ASGIApp:
        body, lm = await _read(request), self._lm
        parsed = await asyncio.to_thread(parse_completion, body, lm.tokenizer, lm.name)
        return Delivery(self._engine, parsed, lm.tokenizer, lm.name)

    async def _find_verbatim(self, request: Request) -> Response:
        """Find the stretches of a text in the training text, one request at a time."""
        text = parse(await _read(request), SearchRequest).text
        if self._n_search >= _MAX_SEARCHES:
            message = f"{self._n_search} searches wait; try again later"
            raise ApiError(message, status=429, code="rate_limit_exceeded")
        self._n_search += 1
        try:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._search_thread, self._search, text)
            return JSONResponse(found)
        finally:
            self._n_search -= 1

    def _search(self, text: str) -> dict[str, Any]:
        try:
            source = self._training_text
        except UserError as error:
            raise ApiError(f"the training text is not there: {error}", status=404) from error
        stretches = [
            {
                "start": start,
                "end": end,
                "place": place,
                "before": source[max(0, place - _AROUND) : place],
                "after": source[place + end - start : place + end - start + _AROUND],
            }
            for start, end, place in copied_stretches(text, source)
        ]
        return {"shortest": SHORTEST_STRETCH, "stretches": stretches}

    @functools.cached_property
    def _training_text(self) -> str:
        train_ids = self._lm.load_corpus().train_ids
        check_searchable(len(train_ids))
        return self._lm.tokenizer.decode(train_ids)


async def _read(request: Request) -> bytes:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() not in ("identity", ""):
        message = f"the body has the Content-Encoding {encoding[:60]!r}; send it without one"
        raise ApiError(message, status=415)
    try:
        async with asyncio.timeout(_READING_SECONDS):
            return await request.body()
    except TimeoutError as error:
        message = f"the body has not come within {_READING_SECONDS} seconds"
        raise ApiError(message, status=408) from error
    except ClientDisconnect as error:
        raise ApiError("the request ended early") from error  # nobody reads this


def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.to_response()


def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    message = {
        404: f"there is nothing at {path[:60]}; see docs/serve.md for the routes",
        405: f"{path[:60]} does not take {request.method}",
    }.get(error.status_code, error.detail)
    return ApiError(message, status=error.status_code).to_response(error.headers)


def _answer_failure(request: Request, error: Exception) -> Response:
    return ApiError("an error of the server; its log says more", status=500).to_response()
