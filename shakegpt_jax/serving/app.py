"""The HTTP application: its routes, and the errors of all of them."""

import asyncio
import functools
import time
from concurrent.futures import ThreadPoolExecutor
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
from shakegpt_jax.serving.api import ApiError, SearchRequest, check_model, parse, parse_completion
from shakegpt_jax.serving.delivery import Delivery
from shakegpt_jax.serving.engine import Engine
from shakegpt_jax.web.serving_page import serving_page

_READING_SECONDS = 30  # for a body
_MAX_SEARCHES = 8  # that run or wait
_ERRORS = ApiError, HTTPException, ClientDisconnect, Exception
_AROUND = 60  # characters of the training text before and after a stretch


def application(lm: LanguageModel, engine: Engine) -> Starlette:
    """Return the ASGI application that serves a model."""
    (page, policy), created = serving_page(lm), int(time.time())
    page_headers = {"content-security-policy": f"{policy}; frame-ancestors 'none'"}
    model = {"id": lm.name, "object": "model", "owned_by": "shakegpt_jax", "created": created}
    searches, search_thread = asyncio.Semaphore(_MAX_SEARCHES), ThreadPoolExecutor(1, "search")
    training_text = functools.cache(lambda: evaluation.searchable_text(lm, lm.load_corpus()))

    def search(text: str) -> list[dict[str, Any]]:
        return _find_copies(text, training_text())

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page, headers=page_headers)

    async def show_health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "texts": engine.n_text})

    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    async def show_model(request: Request) -> Response:
        check_model(request.path_params["name"], lm.name)
        return JSONResponse(model)

    async def complete(request: Request) -> ASGIApp:
        body = await _read(request)
        parsed = await asyncio.to_thread(parse_completion, body, lm.tokenizer, lm.name)
        return Delivery(engine, parsed, lm.tokenizer, lm.name)

    async def find_verbatim(request: Request) -> Response:
        text = parse(await _read(request), SearchRequest).text
        if searches.locked():
            message = f"{_MAX_SEARCHES} searches wait; try again later"
            raise ApiError(message, status=429, code="rate_limit_exceeded")
        async with searches:
            try:
                loop = asyncio.get_running_loop()
                stretches = await loop.run_in_executor(search_thread, search, text)
            except UserError as error:
                message = f"the training text is not there: {error}"
                raise ApiError(message, status=404) from error
        return JSONResponse({"shortest": evaluation.SHORTEST_STRETCH, "stretches": stretches})

    app = Starlette(
        routes=[
            Route("/", show_page),
            Route("/health", show_health),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", show_model),
            Route("/v1/completions", complete, methods=["POST"]),
            Route("/v1/verbatim", find_verbatim, methods=["POST"]),
        ],
        exception_handlers=dict.fromkeys(_ERRORS, _answer_error),
    )
    app.router.redirect_slashes = False
    return app


def _find_copies(text: str, source: str) -> list[dict[str, Any]]:
    found = []
    for start, end, place in evaluation.copied_stretches(text, source):
        before = source[max(0, place - _AROUND) : place]
        after = source[place + end - start : place + end - start + _AROUND]
        found.append({"start": start, "end": end, "place": place, "before": before, "after": after})
    return found


async def _read(request: Request) -> bytes:
    try:
        async with asyncio.timeout(_READING_SECONDS):
            return await request.body()
    except TimeoutError as error:
        message = f"the body has not come within {_READING_SECONDS} seconds"
        raise ApiError(message, status=408) from error


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
