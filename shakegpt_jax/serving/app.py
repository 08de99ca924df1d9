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
from shakegpt_jax.inference import evaluation
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
            exception_handlers=dict.fromkeys((ApiError, HTTPException, Exception), _answer_error),
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
        text = parse(await _read(request), SearchRequest).text
        if self._n_search >= _MAX_SEARCHES:
            message = f"{self._n_search} searches wait; try again later"
            raise ApiError(message, status=429, code="rate_limit_exceeded")
        self._n_search += 1
        try:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._search_thread, self._search, text)
        finally:
            self._n_search -= 1
        return JSONResponse(found)

    def _search(self, text: str) -> dict[str, Any]:
        try:
            source = self._training_text
        except UserError as error:
            raise ApiError(f"the training text is not there: {error}", status=404) from error
        stretches = []
        for start, end, place in evaluation.copied_stretches(text, source):
            before = source[max(0, place - _AROUND) : place]
            after = source[place + end - start : place + end - start + _AROUND]
            found = {"start": start, "end": end, "place": place, "before": before, "after": after}
            stretches.append(found)
        return {"shortest": evaluation.SHORTEST_STRETCH, "stretches": stretches}

    @functools.cached_property
    def _training_text(self) -> str:
        train_ids = self._lm.load_corpus().train_ids
        evaluation.check_searchable(len(train_ids))
        return self._lm.tokenizer.decode(train_ids)


async def _read(request: Request) -> bytes:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        message = f"the body has Content-Encoding {encoding[:60]!r}; send it without one"
        raise ApiError(message, status=415)
    try:
        async with asyncio.timeout(_READING_SECONDS):
            return await request.body()
    except TimeoutError as error:
        message = f"the body has not come within {_READING_SECONDS} seconds"
        raise ApiError(message, status=408) from error
    except ClientDisconnect as error:
        raise ApiError("the request ended early") from error  # nobody reads this


def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ApiError):
        return error.to_response()
    if isinstance(error, HTTPException):
        path = request.url.path[:60]
        message = {
            404: f"there is nothing at {path}; see docs/serve.md for the routes",
            405: f"{path} does not take {request.method}",
        }.get(error.status_code, error.detail)
        return ApiError(message, status=error.status_code).to_response(error.headers)
    return ApiError("an error of the server; its log says more", status=500).to_response()
