"""Several processes that train together: start, agreement, and the loss of a process.

JAX connects the processes. Small messages go through the key-value store of JAX's coordination
service, which JAX has no public interface for.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from shakegpt_jax.command_line.launch import Launch
from shakegpt_jax.errors import StoppedBySignalError, UserError

T = TypeVar("T")

_BEAT_SECONDS = 0.5
_RESUME = "run the same command again to resume from the last checkpoint"
_MARGIN_SECONDS = 15  # JAX ends the process without a reason; the watch is to be earlier


def _connect(launch: Launch, heartbeat_seconds: int) -> None:
    """Connect this process to the others, and end it if one of them is lost.

    Args:
        launch: this process.
        heartbeat_seconds: after how long without a sign a process is lost.

    Raises:
        UserError: if the others cannot be reached.
    """
    n, rank = launch.num_processes, launch.process_id
    print(
        f"process {rank} of {n} on {socket.gethostname()}, "
        f"coordinator {launch.coordinator_address}",
        file=sys.stderr,
        flush=True,
    )
    # Its handler of SIGTERM would replace ours.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            launch.coordinator_address,
            n,
            rank,
            launch.local_device_ids,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=heartbeat_seconds + _MARGIN_SECONDS,
            shutdown_timeout_seconds=heartbeat_seconds + _MARGIN_SECONDS,
        )
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"process {rank} of {n} cannot reach all others through "
            f"{launch.coordinator_address}: {reason}"
        ) from error
    _watch.start(heartbeat_seconds)
    print(
        f"process {rank} has {jax.local_device_count()} of {jax.device_count()} devices "
        f"({jax.local_devices()[0].device_kind})",
        file=sys.stderr,
        flush=True,
    )


def is_primary() -> bool:
    """Return whether this process prints, and writes what is not an array: process 0."""
    return jax.process_index() == 0


def highest(value: int) -> int:
    """Return the highest value of all processes. All must call it, in the same order."""
    if jax.process_count() == 1:
        return value
    _watch.progress += 1
    return int(multihost_utils.process_allgather(np.array(value, np.int32)).max())


def on_primary(name: str, function: Callable[[], T]) -> T | None:
    """Run a function in process 0 alone, while the others wait.

    Args:
        name: of this call, unique in the run.
        function: what to run.

    Returns:
        Its result in process 0; None elsewhere.

    Raises:
        Exception: what the function raises, in process 0; the watch ends the others.
    """
    if jax.process_count() == 1:
        return function()
    result = function() if is_primary() else None
    _watch.progress += 1
    multihost_utils.sync_global_devices(name)
    return result


def check_equal(about: str, values: dict[str, Any]) -> None:
    """Check that all processes have the same values.

    Args:
        about: of this call, unique in the run.
        values: by name; anything that JSON can express.

    Raises:
        UserError: in all processes, naming each difference from process 0.
    """
    if jax.process_count() == 1:
        return
    ours = {name: json.dumps(value) for name, value in values.items()}
    first, *others = map(json.loads, _watch.exchange(about, json.dumps(ours)))
    differences = [
        f"{name} ({first.get(name)} in process 0, {other.get(name)} in process {rank})"
        for rank, other in enumerate(others, start=1)
        for name in sorted(first.keys() | other.keys())
        if first.get(name) != other.get(name)
    ]
    if differences:
        raise UserError(f"the processes differ in {', '.join(differences)}; start all alike")


@contextlib.contextmanager
def connected(launch: Launch | None, heartbeat_seconds: int) -> Iterator[None]:
    """Connect this process to the others while the block runs; None: it is alone.

    An exception in one process ends all of them, with its exit code. One that all raise is
    reported once.
    """
    if launch is None:
        yield
        return
    _connect(launch, heartbeat_seconds)
    try:
        yield
    except Exception as error:
        _watch.fail(error)
    _watch.stop()
    jax.distributed.shutdown()


class _Watch:
    """A thread that shows that this process is alive, and ends it if another one is not."""

    client: Any = None
    progress = 0  # agreements so far, the same number in all processes

    def start(self, heartbeat_seconds: int) -> None:
        from jax._src import distributed

        self.client = distributed.global_state.client
        self._patience = heartbeat_seconds
        self._rank, self._n = jax.process_index(), jax.process_count()
        self._stopped = threading.Event()
        self._ending = False
        # JAX aborts as soon as process 0, which runs the coordination service, is gone.
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(
            lambda _: self._end("lost process 0, the coordinator")
        )
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = [ctypes.c_int, type(self._on_abort)]
        libc.signal(signal.SIGABRT, self._on_abort)
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        self.client.key_value_set(f"done/{self._rank}", "")
        self._stopped.set()
        ctypes.CDLL(None).signal(signal.SIGABRT, None)

    def exchange(self, name: str, text: str) -> list[str]:
        """Return the texts of all processes, in their order."""
        self.client.key_value_set(f"{name}/{self._rank}", text)
        milliseconds = 1_000 * 10 * self._patience  # the watch ends the process before
        return [
            self.client.blocking_key_value_get(f"{name}/{rank}", milliseconds)
            for rank in range(self._n)
        ]

    def fail(self, error: Exception) -> NoReturn:
        """End this process because of an exception, and the others with it."""
        code = getattr(error, "exit_code", 1)
        if isinstance(error, RuntimeError | ValueError) and not isinstance(error, UserError):
            # Perhaps JAX's view of the end of another process. The watch knows better.
            time.sleep(self._patience + 2 * _BEAT_SECONDS)
            traceback.print_exc()
        self._ending = True
        prefix = "" if isinstance(error, StoppedBySignalError) else "error: "
        if self._is_shared(f"{code} {error}"):
            text = f"{prefix}{error}" if is_primary() else ""
        else:
            text = f"{prefix}process {self._rank}: {error}"
        if text:
            print(text, file=sys.stderr, flush=True)
        # At exit, JAX would wait for processes that have no reason to end.
        os._exit(code)

    def _is_shared(self, message: str) -> bool:
        """Tell the others of an error; return whether all of them have the same."""
        with contextlib.suppress(Exception):  # process 0 may be gone
            self.client.key_value_set(f"error/{self._rank}", message)
            deadline = time.monotonic() + 4 * _BEAT_SECONDS
            while time.monotonic() < deadline:
                errors = dict(self.client.key_value_dir_get("error/"))
                if len(errors) == self._n:
                    if is_primary():  # which answers the others
                        time.sleep(_BEAT_SECONDS)
                    return len(set(errors.values())) == 1
                time.sleep(0.05)
        return False

    def _run(self) -> None:
        """Beat, and compare the beats and the progress of the others with the clock."""
        seen: dict[str, tuple[str, float]] = {}
        behind: dict[str, float] = {}
        warned: set[str] = set()
        count = 0
        while not self._stopped.wait(_BEAT_SECONDS):
            count += 1
            try:
                self.client.key_value_set(
                    f"beat/{self._rank}", f"{count} {self.progress}", allow_overwrite=True
                )
                beats = dict(self.client.key_value_dir_get("beat/"))
                done = {key.split("/")[-1] for key, _ in self.client.key_value_dir_get("done/")}
                errors = dict(self.client.key_value_dir_get("error/"))
            except Exception:
                self._end("lost process 0, the coordinator")
            if self._ending or self._stopped.is_set():
                continue
            if errors:
                time.sleep(4 * _BEAT_SECONDS)  # this process may be about to fail in the same way
                if not self._ending:
                    os._exit(int(next(iter(errors.values())).split()[0]))  # it has said why
                continue
            now = time.monotonic()
            for key, beat in beats.items():
                rank = key.split("/")[-1]
                if rank in done:
                    continue
                if seen.get(rank, ("", 0.0))[0] != beat:
                    seen[rank] = beat, now
                if now - seen[rank][1] > self._patience:
                    self._end(f"lost process {rank}: no sign of it for {self._patience} s")
                if int(beat.split()[1]) >= self.progress:
                    behind.pop(rank, None)
                    continue
                waiting = now - behind.setdefault(rank, now)
                if waiting > 4 * self._patience:
                    self._end(f"process {rank} has stalled: no progress for {waiting:.0f} s")
                if waiting > 2 * self._patience and rank not in warned:
                    warned.add(rank)
                    print(
                        f"process {self._rank} has waited {waiting:.0f} s for process {rank}",
                        file=sys.stderr,
                        flush=True,
                    )

    def _end(self, reason: str) -> NoReturn:
        if not self._ending:
            self._ending = True
            text = f"error: process {self._rank}: {reason}; {_RESUME}\n"
            os.write(2, text.encode())
        os._exit(1)


_watch = _Watch()
