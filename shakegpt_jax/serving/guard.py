"""ASGI middleware that decides who may ask, and how much: Host, Origin, size of the body.

A page of another site can make a browser send requests here. With the Host header checked, it
cannot do so under a name of its own that resolves to this machine (DNS rebinding); with the Origin
header checked, not under the right name either.
"""

import asyncio
import contextlib
import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shakegpt_jax.errors import UserError
from shakegpt_jax.serving.api import MAX_BODY, ApiError

# No user information, no path; the port is a number.
_NAME = r"[a-z0-9._-]+|\[[0-9a-f:.]+\]"
_HOST = re.compile(f"({_NAME})(:[0-9]{{1,5}})?")

_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}


def check_origin(text: str) -> str:
    """Return an origin as browsers send it; UserError if it is malformed."""
    scheme, _, host = text.lower().partition("://")
    if scheme not in ("http", "https") or not _HOST.fullmatch(host):
        right = "like https://example.org or http://localhost:3000"
        raise UserError(f"--allow_origin is {text!r}; it must be {right}")
    return text.lower()


def check_host(text: str) -> str:
    """Return a host as it stands in a Host header, without a port; UserError if it is malformed."""
    name = text.lower().strip("[]")
    name = f"[{name}]" if ":" in name and _is_address(name) else name
    if not re.fullmatch(_NAME, name):
        raise UserError(f"{text!r} is not a host; give a name or an address, without a port")
    return name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


class Guard:
    """Refuses requests that are not for this server, and adds headers to all answers.

    Starlette's TrustedHostMiddleware knows names, but not "any address", and answers in plain text.
    """

    def __init__(
        self, app: ASGIApp, hosts: Sequence[str], origins: Sequence[str], *, any_address: bool
    ):
        """Guard an application with names `hosts`, which pages of `origins` may use too.

        With `any_address`, every IP address is its name: only domain names can be rebound.
        """
        self._hosts = {"localhost", "127.0.0.1", "[::1]", *hosts}
        self._origins, self._any_address, self._app = frozenset(origins), any_address, app
        if origins:  # otherwise no answer has a CORS header
            methods = ("GET", "POST")
            self._app = CORSMiddleware(app, origins, allow_methods=methods, allow_headers=["*"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the application answer."""
        n_byte = 0

        async def receive_limited() -> Message:
            nonlocal n_byte
            message = await receive()
            n_byte += len(message.get("body", b""))
            _check_length(n_byte)
            return message

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(Headers(scope=scope))
        except ApiError as error:
            answer = error.to_response({"connection": "close"})
            await answer(scope, receive, send_with_headers)
            return
        # uvicorn cancels at the end of its grace period, and would log a traceback.
        with contextlib.suppress(asyncio.CancelledError):
            await self._app(scope, receive_limited, send_with_headers)

    def _check(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        host = hosts[0].lower() if len(hosts) == 1 else ""
        if not (match := _HOST.fullmatch(host)):
            raise ApiError("the Host header is missing or malformed")
        name = match[1]
        if name not in self._hosts and not (self._any_address and _is_address(name)):
            advice = "start it with --allow_host to serve this name"
            raise ApiError(f"this server is not {name}; {advice}", status=421)
        origin = headers.get("origin", "").lower()
        if origin and origin not in {f"http://{host}", f"https://{host}", *self._origins}:
            message = f"pages of {origin} may not use this server: see --allow_origin"
            raise ApiError(message, status=403)
        _check_length(int(headers.get("content-length", "0")[:20]))


def _check_length(n_byte: int) -> None:
    if n_byte > MAX_BODY:
        raise ApiError(f"the body has more than {MAX_BODY} bytes", status=413)
