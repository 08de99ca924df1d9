"""The description of the API, from the types that decode requests and encode answers."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Route

from shakegpt_jax import __version__
from shakegpt_jax.serving.answers import Failure

_JSON = "application/json"
_NULL = {"type": "null"}


class ApiRoute(Route):
    """A route and the types of its body and answer; its endpoint's docstring says what it does."""

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *media: str,
        takes: type | None = None,
        gives: type | None = None,
    ):
        compressed = [Middleware(GZipMiddleware)] if "text/html" in media else None  # no streams
        methods = ["POST" if takes else "GET"]
        super().__init__(path, endpoint, methods=methods, middleware=compressed)
        self.media, self.takes, self.gives = media or (_JSON,), takes, gives

    def describe(self, model: str, schemas: dict[type, Any]) -> dict[str, Any]:
        """Return the path item of OpenAPI; path parameters are the name of the model."""
        answer = {
            each: {"schema": schemas[self.gives]} if self.gives else {} for each in self.media
        }
        failure = {"description": "What is wrong", "content": {_JSON: {"schema": schemas[Failure]}}}
        operation = {
            "summary": self.endpoint.__doc__,
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"const": model}}
                for name in self.param_convertors
            ],
            "responses": {
                "200": {"description": "Success", "content": answer},
                "4XX": failure,
                "5XX": failure,
            },
        }
        if not self.takes:
            return {"get": operation}
        body = {"required": True, "content": {_JSON: {"schema": schemas[self.takes]}}}
        return {"post": operation | {"requestBody": body}}


def describe_api(model: str, routes: Sequence[ApiRoute]) -> dict[str, Any]:
    """Return the OpenAPI description of routes for a model of this name."""
    used = (kind for route in routes for kind in (route.takes, route.gives) if kind)
    structs = [*dict.fromkeys([*used, Failure])]
    template = "#/components/schemas/{name}"
    references, components = msgspec.json.schema_components(structs, ref_template=template)
    for schema in components.values():
        for name in {*schema["properties"]} - {*schema["required"]}:
            schema["properties"][name] = _or_null(schema["properties"][name])
    schemas = dict(zip(structs, references, strict=True))
    meaning = f"Text by the model {model}, in the shape of OpenAI's completions"
    return {
        "openapi": "3.1.0",
        "info": {"title": "shakegpt serve", "version": __version__, "description": meaning},
        "paths": {route.path_format: route.describe(model, schemas) for route in routes},
        "components": {"schemas": components},
    }


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an optional field, for which null means the default."""
    default = {"default": schema.pop("default")} if "default" in schema else {}
    choices = schema.get("anyOf", [schema])
    return {"anyOf": choices if _NULL in choices else [*choices, _NULL]} | default
