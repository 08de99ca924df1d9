"""Several processes that train together. Each of these functions also works for one alone."""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from shakegpt_jax.cli.launch import Launch
from shakegpt_jax.errors import UserError
from shakegpt_jax.watch import Watch

_CONNECT_SECONDS = 240
_MARGIN_SECONDS = 15  # JAX gives no reason when it ends a process; the watch is to be earlier

_watch: Watch | None = None


@contextlib.contextmanager
def connected(launch: Launch | None, heartbeat_seconds: int) -> Iterator[None]:
    """Connect this process to the others while the block runs.

    An exception in one process ends all of them, with its exit code. One that all raise is
    reported once. `Watch` says what happens if a process is lost.

    Args:
        launch: this process; None if it is alone.
        heartbeat_seconds: after how long without a sign a process is lost.

    Raises:
        UserError: if the others cannot be reached.
    """
    global _watch
    if launch is None:
        yield
        return
    _connect(launch, heartbeat_seconds)
    _watch = Watch(heartbeat_seconds)
    _say(
        f"process {launch.process_id} has {jax.local_device_count()} of {jax.device_count()} "
        f"devices ({jax.local_devices()[0].device_kind})"
    )
    try:
        check_equal("launch", {"--num_processes": launch.num_processes})
        yield
    except Exception as error:
        _watch.fail(error)
    _watch.stop()
    jax.distributed.shutdown()
    _watch = None


def is_primary() -> bool:
    """Return whether this is process 0, which prints and writes all that is not an array."""
    return jax.process_index() == 0


def highest(value: int) -> int:
    """Return the highest value of all processes. All must call it, in the same order."""
    if _watch is None:
        return value
    _watch.progress += 1
    return int(multihost_utils.process_allgather(np.array(value, np.int32)).max())


def primary_first(function: Callable[[], object]) -> None:
    """Run a function in process 0, which the others wait for. All must call it."""
    with busy():
        if is_primary():
            function()
    highest(0)


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Let the others wait for what this process does in the block, however long it takes."""
    if _watch is None:
        yield
        return
    _watch.busy += 1
    try:
        yield
    finally:
        _watch.busy -= 1


def from_primary(about: str, text: str) -> str:
    """Return the text of process 0. All must call it.

    Args:
        about: of this call, unique in the run.
        text: of this process.
    """
    return text if _watch is None else _watch.exchange(about, text)[0]


def check_equal(about: str, values: dict[str, Any]) -> None:
    """Check that all processes have the same values. All must call it.

    Args:
        about: of this call, unique in the run.
        values: by name; anything that JSON can express.

    Raises:
        UserError: in all processes, naming each difference from process 0.
    """
    if _watch is None:
        return
    first, *others = map(json.loads, _watch.exchange(about, json.dumps(values)))
    differences = [
        f"{name} ({first.get(name)!r} in process 0, {other.get(name)!r} in process {rank})"
        for rank, other in enumerate(others, start=1)
        for name in sorted(first.keys() | other.keys())
        if first.get(name) != other.get(name)
    ]
    if differences:
        raise UserError(f"the processes differ in {', '.join(differences)}; start all alike")


def _connect(launch: Launch, heartbeat_seconds: int) -> None:
    _say(
        f"process {launch.process_id} of {launch.num_processes} on {socket.gethostname()}, "
        f"coordinator {launch.coordinator_address}"
    )
    # Its handler of SIGTERM would replace ours.
    jax.config.update("jax_enable_preemption_service", False)
    # Python's own handlers have to wait until JAX has reached the others.
    handlers = {n: signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGTERM)}
    absent = f"cannot reach the other processes through {launch.coordinator_address}"
    # JAX would abort, without a reason.
    waiting = threading.Timer(_CONNECT_SECONDS / 4, _say, [f"still waiting: {absent}"])
    timeout = threading.Timer(_CONNECT_SECONDS, _give_up, [absent])
    try:
        waiting.start()
        timeout.start()
        jax.distributed.initialize(
            *launch,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=heartbeat_seconds + _MARGIN_SECONDS,
            shutdown_timeout_seconds=heartbeat_seconds + _MARGIN_SECONDS,
        )
    except RuntimeError as error:
        raise UserError(f"{absent}: {str(error).splitlines()[0]}") from error
    finally:
        waiting.cancel()
        timeout.cancel()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _give_up(reason: str) -> None:
    _say(f"error: {reason} for {_CONNECT_SECONDS} s; start all of them, with the same address")
    os._exit(UserError.exit_code)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
