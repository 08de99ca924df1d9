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


def application(lm: LanguageModel, engine: Engine) -> Starlette:
    """Return the ASGI application that serves a model."""
    try:
        lm.tokenizer.vocabulary.encode()
    except UnicodeEncodeError as error:
        raise UserError("the vocabulary has a lone surrogate, which UTF-8 forbids") from error
    (page, policy), created = serving_page(lm), int(time.time())
    page_headers = {"content-security-policy": f"{policy}; frame-ancestors 'none'"}
    model = {"id": lm.name, "object": "model", "owned_by": "shakegpt_jax", "created": created}
    search = _Search(lm)

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page, headers=page_headers)

    async def show_health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "texts": engine.n_text})

    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    async def show_model(request: Request) -> Response:
        if (name := request.path_params["name"]) != lm.name:
            message = f"the model {name!r} is not served here; use {lm.name!r}"
            raise ApiError(message, status=404, param="model", code="model_not_found")
        return JSONResponse(model)

    async def complete(request: Request) -> ASGIApp:
        body = await _read(request)
        parsed = await asyncio.to_thread(parse_completion, body, lm.tokenizer, lm.name)
        return Delivery(engine, parsed, lm.tokenizer, lm.name)

    async def find_verbatim(request: Request) -> Response:
        return JSONResponse(await search.run(parse(await _read(request), SearchRequest).text))

    app = Starlette(
        routes=[
            Route("/", show_page),
            Route("/health", show_health),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", show_model),
            Route("/v1/completions", complete, methods=["POST"]),
            Route("/v1/verbatim", find_verbatim, methods=["POST"]),
        ],
        exception_handlers=dict.fromkeys((ApiError, HTTPException, Exception), _answer_error),
    )
    app.router.redirect_slashes = False
    return app


class _Search:
    """Finds stretches of texts in the training text, one text at a time."""

    def __init__(self, lm: LanguageModel):
        self._lm, self._n_search = lm, 0
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "search")

    async def run(self, text: str) -> dict[str, Any]:
        if self._n_search >= _MAX_SEARCHES:
            message = f"{self._n_search} searches wait; try again later"
            raise ApiError(message, status=429, code="rate_limit_exceeded")
        self._n_search += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._search, text)
        except UserError as error:
            raise ApiError(f"the training text is not there: {error}", status=404) from error
        finally:
            self._n_search -= 1

    def _search(self, text: str) -> dict[str, Any]:
        source, stretches = self._training_text, []
        for start, end, place in evaluation.copied_stretches(text, source):
            before = source[max(0, place - _AROUND) : place]
            after = source[place + end - start : place + end - start + _AROUND]
            found = {"start": start, "end": end, "place": place, "before": before, "after": after}
            stretches.append(found)
        return {"shortest": evaluation.SHORTEST_STRETCH, "stretches": stretches}

    @functools.cached_property
    def _training_text(self) -> str:
        return evaluation.searchable_text(self._lm, self._lm.load_corpus())


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
