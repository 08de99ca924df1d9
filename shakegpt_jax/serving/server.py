"""Running the application on a port until a signal ends it."""

import asyncio
import concurrent.futures
import ipaddress
import socket
import time
from collections.abc import Sequence

import uvicorn

from shakegpt_jax.errors import UserError
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.serving.api import ApiError
from shakegpt_jax.serving.app import application
from shakegpt_jax.serving.engine import Engine
from shakegpt_jax.serving.guard import Guard

_LAST_SECONDS = 1  # for sending the end of answers


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
    lm: LanguageModel,
    bound: socket.socket,
    *,
    hosts: Sequence[str],
    origins: Sequence[str],
    max_batch: int,
    max_queue: int,
    grace: int,
) -> None:
    """Serve a model on a socket from `bind` until SIGINT or SIGTERM; see `Engine` and `Guard`.

    Texts under way may go on for `grace` seconds after the signal.
    """
    engine = Engine(lm, max_batch, max_queue)
    app = Guard(application(lm, engine), hosts, origins, any_address=_is_any(bound))
    start = time.perf_counter()
    engine.start(warm_up=True)
    seconds = time.perf_counter() - start
    print(f"Compiled for up to {max_batch} texts at a time in {seconds:.0f} s.", flush=True)
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
