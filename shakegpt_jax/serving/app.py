"""The HTTP application: routes and errors."""

import asyncio
import time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.serving.api_error import ApiError, error_response
from shakegpt_jax.serving.delivery import CompletionResponse, Workers
from shakegpt_jax.serving.engine import Engine
from shakegpt_jax.serving.requests import CompletionRequest, parse_completion, parse_json
from shakegpt_jax.serving.verbatim import Verbatim
from shakegpt_jax.web.serving_page import serving_page

_READING_SECONDS = 30  # for a body


class App:
    """The answers of a server, by route."""

    def __init__(self, lm: LanguageModel, engine: Engine):
        """Serve a model under its name."""
        self._lm, self._engine = lm, engine
        self._created = int(time.time())
        self._page, self._policy = serving_page(lm)
        self._verbatim = Verbatim(lm)
        self._workers = Workers()

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
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def _show_model(self, request: Request) -> Response:
        if (name := request.path_params["name"]) != self._lm.name:
            message = f"the model {name!r} is not served here; use {self._lm.name!r}"
            raise ApiError(message, status=404, param="model", code="model_not_found")
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._lm.name,
            "object": "model",
            "created": self._created,
            "owned_by": "shakegpt_jax",
        }

    async def _complete(self, request: Request) -> Response:
        body = await _read(request)
        parsed = await self._workers.run(self._parse_completion, body)
        return CompletionResponse(
            self._engine, parsed, self._lm.tokenizer, self._lm.name, self._workers
        )

    def _parse_completion(self, body: bytes) -> CompletionRequest:
        return parse_completion(parse_json(body), self._lm.tokenizer, self._lm.name)

    async def _find_verbatim(self, request: Request) -> Response:
        body = await _read(request)
        return JSONResponse(await self._verbatim.search(body))


async def _read(request: Request) -> bytes:
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
    return error_response(error)


def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    message = {
        404: f"there is nothing at {path[:60]}; see docs/serve.md for the routes",
        405: f"{path[:60]} does not take {request.method}",
    }.get(error.status_code, error.detail)
    return error_response(ApiError(message, status=error.status_code), error.headers)


def _answer_failure(request: Request, error: Exception) -> Response:
    return error_response(ApiError("an error of the server; its log says more", status=500))
