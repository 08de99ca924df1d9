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

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shakegpt_jax.errors import UserError
from shakegpt_jax.serving.api_error import ApiError, error_response
from shakegpt_jax.serving.requests import MAX_BODY

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")

# No user information, no path; the port is a number.
_HOST = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")

_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}
_CORS = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "authorization, content-type, *",
    "access-control-max-age": "600",
}


def check_origin(text: str) -> str:
    """Return an origin as browsers send it.

    Raises:
        UserError: if it is not of the form scheme://host or scheme://host:port.
    """
    scheme, separator, host = text.lower().partition("://")
    if scheme not in ("http", "https") or not separator or _hostname(host) is None:
        right = "like https://example.org or http://localhost:3000"
        raise UserError(f"--allow_origin is {text!r}; it must be {right}")
    return text.lower()


def check_host(text: str) -> str:
    """Return a host name as it stands in a Host header, without a port.

    Raises:
        UserError: if it is not a name or an address.
    """
    name = text.lower()
    if ":" in name and _is_address(name):
        return f"[{name.strip('[]')}]"
    if ":" in name or _hostname(name) != name:
        raise UserError(f"{text!r} is not a host; give a name or an address, without a port")
    return name


def _hostname(host: str) -> str | None:
    """Return the name in a Host header, without its port; None: it is malformed."""
    match = _HOST.fullmatch(host)
    return match and match["name"]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


class Guard:
    """Refuses requests that are not for this server, and adds headers to all answers."""

    def __init__(
        self, app: ASGIApp, hosts: Sequence[str], origins: Sequence[str], *, any_address: bool
    ):
        """Guard an application.

        Args:
            app: the application.
            hosts: names that this server has besides those of the loopback interface.
            origins: origins whose pages may use it besides its own.
            any_address: accept every IP address as its name; only domain names can be rebound.
        """
        self._app = app
        self._hosts = {*_LOOPBACK, *hosts}
        self._origins = frozenset(origins)
        self._any_address = any_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the application answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value.decode("latin-1"))
        added = dict(_HEADERS)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                new = [(k.encode(), v.encode()) for k, v in added.items()]
                message["headers"] = [
                    *message["headers"],
                    *((name, value) for name, value in new if name not in present),
                ]
            await send(message)

        try:
            origin = self._check(headers)
        except ApiError as error:
            answer = error_response(error, {"connection": "close"})
            await answer(scope, receive, send_with_headers)
            return
        app = self._app
        if origin in self._origins:
            added |= {"access-control-allow-origin": origin, "vary": "origin"}
            if scope["method"] == "OPTIONS":
                app = Response(status_code=204, headers=_CORS)
        # uvicorn cancels at the end of its grace period, and would log a traceback.
        with contextlib.suppress(asyncio.CancelledError):
            await app(scope, _limited(receive), send_with_headers)

    def _check(self, headers: dict[bytes, list[str]]) -> str:
        """Return the origin of a request, or "".

        Raises:
            ApiError: if it is not for this server, or too large.
        """
        hosts = [host.lower() for host in headers.get(b"host", [])]
        name = _hostname(hosts[0]) if len(hosts) == 1 else None
        if name is None:
            raise ApiError("the Host header is missing or malformed")
        if name not in self._hosts and not (self._any_address and _is_address(name)):
            advice = "start it with --allow_host to serve this name"
            raise ApiError(f"this server is not {name}; {advice}", status=421)
        origin = headers.get(b"origin", [""])[0].lower()
        own = {f"{scheme}://{hosts[0]}" for scheme in ("http", "https")}
        if origin and origin not in own | self._origins:
            message = f"pages of {origin} may not use this server: see --allow_origin"
            raise ApiError(message, status=403)
        length = headers.get(b"content-length", ["0"])[0]
        if not length.isdecimal() or int(length[:20]) > MAX_BODY:
            raise _too_large()
        return origin


def _limited(receive: Receive) -> Receive:
    """Return a `receive` that fails as soon as a body is too large."""
    n_byte = 0

    async def limited() -> Message:
        nonlocal n_byte
        message = await receive()
        n_byte += len(message.get("body", b""))
        if n_byte > MAX_BODY:
            raise _too_large()
        return message

    return limited


def _too_large() -> ApiError:
    return ApiError(f"the body has more than {MAX_BODY} bytes", status=413)
