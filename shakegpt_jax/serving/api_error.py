"""Errors in the shape of the OpenAI API."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

_RETRY_AFTER = {"retry-after": "2"}  # seconds


class ApiError(Exception):
    """A request that is answered with an error: a message for people, and what clients test."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ):
        """Describe an error.

        Args:
            message: what is wrong, what was given and what would be right.
            status: of the HTTP answer.
            param: the field of the request that is wrong.
            code: a name for the kind of error.
        """
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def to_json(self) -> dict[str, Any]:
        """Return the error object of the OpenAI API."""
        kinds = {429: "rate_limit_error", 403: "permission_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": str(self),
                "type": kinds.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }


def error_response(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer that an error is, with headers of its own."""
    if error.status in (429, 503):
        headers = _RETRY_AFTER
    body = json.dumps(error.to_json())  # ASCII, since JSONResponse fails on half a surrogate pair
    return Response(body, error.status, headers, media_type="application/json")
