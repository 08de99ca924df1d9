"""A thread that ends this process if another process of the run fails, is lost or stalls.

Processes exchange short texts through the key-value store of JAX's coordination service, which has
no public interface. It runs in process 0.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import jax
from jax._src import distributed

from shakegpt_jax.errors import StoppedBySignalError, UserError

_BEAT_SECONDS = 0.5
_RESUME = "run the same command again to resume from the last checkpoint"
_LOST_COORDINATOR = "lost process 0, the coordinator (or aborted, if XLA says why above)"


class Watch:
    """Watches the other processes from its creation until `stop`."""

    def __init__(self, patience: int):
        """Start to watch.

        Args:
            patience: seconds without a sign after which a process is lost. One that shows no
                progress, and is not `busy`, is reported after twice that time and given up after
                ten times.
        """
        self.progress = 0  # agreements with the others so far
        self.busy = 0  # above 0 while this process does what others wait for, however long
        self._client: Any = distributed.global_state.client
        self._patience = patience
        self._rank, self._n = jax.process_index(), jax.process_count()
        self._ending = False
        self._stopped = threading.Event()
        self._seen: dict[str, tuple[str, float]] = {}  # last beat of each process, since when
        self._reached: dict[str, tuple[int, float]] = {}  # last progress, since when
        self._warned: set[str] = set()
        # JAX aborts the other processes as soon as process 0 is gone. This says why.
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(
            lambda _: self._end(_LOST_COORDINATOR)
        )
        self._libc = ctypes.CDLL(None)
        if self._rank:
            self._libc.signal(signal.SIGABRT, self._on_abort)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching, and let the others know that this process has finished."""
        self._client.key_value_set(f"done/{self._rank}", "")
        self._stopped.set()
        self._thread.join()
        self._libc.signal(signal.SIGABRT, None)

    def exchange(self, about: str, text: str) -> list[str]:
        """Return the texts of all processes, in their order."""
        self.progress += 1
        self._client.key_value_set(f"{about}/{self._rank}", text)
        milliseconds = 20_000 * self._patience  # the watch gives up before
        return [
            self._client.blocking_key_value_get(f"{about}/{rank}", milliseconds)
            for rank in range(self._n)
        ]

    def fail(self, error: Exception) -> NoReturn:
        """End this process because of an exception, and the others with it."""
        code = getattr(error, "exit_code", 1)
        if "RESOURCE_EXHAUSTED" in str(error):
            code = UserError.exit_code
        elif not hasattr(error, "exit_code") and not isinstance(error, OSError):
            # Perhaps JAX's view of the end of another process, which the watch knows better.
            time.sleep(self._patience + 4 * _BEAT_SECONDS)
            traceback.print_exc()
        self._ending = True
        prefix = "" if isinstance(error, StoppedBySignalError) else "error: "
        if not self._all_have(f"{code} {error}"):
            print(f"{prefix}process {self._rank}: {error}", file=sys.stderr, flush=True)
        else:
            # The others leave later: their end may be what a launcher ends process 0 for.
            with contextlib.suppress(Exception):
                if self._rank == 0:
                    print(f"{prefix}{error}", file=sys.stderr, flush=True)
                    self._client.key_value_set("reported/0", "")
                    time.sleep(_BEAT_SECONDS)
                else:
                    self._client.blocking_key_value_get("reported/0", int(4_000 * _BEAT_SECONDS))
        # At exit, JAX would wait for processes that have no reason to end.
        os._exit(code)

    def _all_have(self, error: str) -> bool:
        """Tell the others of an error; return whether all of them end with the same."""
        with contextlib.suppress(Exception):  # process 0 may be gone
            self._client.key_value_set(f"error/{self._rank}", error)
            # Process 0 leaves last: it answers the others.
            deadline = time.monotonic() + (4 if self._rank else 10) * _BEAT_SECONDS
            while time.monotonic() < deadline:
                errors = self._read("error")
                if len(errors) == self._n:
                    return len(set(errors.values())) == 1
                time.sleep(0.05)
        return False

    def _read(self, about: str) -> dict[str, str]:
        """Return the texts that processes have published, by process."""
        texts = self._client.key_value_dir_get(f"{about}/")
        return {key.rpartition("/")[2]: text for key, text in texts}

    def _run(self) -> None:
        n_beat = 0
        while not self._stopped.wait(_BEAT_SECONDS):
            n_beat += 1
            beat = f"{n_beat} {self.progress} {self.busy}"
            try:
                self._client.key_value_set(f"beat/{self._rank}", beat, allow_overwrite=True)
                beats, done, errors = map(self._read, ("beat", "done", "error"))
            except Exception:
                if not self._stopped.is_set():
                    self._end(_LOST_COORDINATOR)
                return
            if errors and not self._ending:
                time.sleep(4 * _BEAT_SECONDS)  # this process may be about to fail in the same way
                if not self._ending:
                    os._exit(int(next(iter(errors.values())).split()[0]))  # the other says why
            for rank in beats.keys() - done.keys():
                self._check(rank, beats[rank])

    def _check(self, rank: str, beat: str) -> None:
        now = time.monotonic()
        _, progress, busy = map(int, beat.split())
        if self._seen.get(rank, ("",))[0] != beat:
            self._seen[rank] = beat, now
        if now - self._seen[rank][1] > self._patience:
            self._end(f"lost process {rank}: no sign of it for {self._patience} s")
        if busy or progress >= self.progress or self._reached.get(rank, (-1,))[0] != progress:
            self._reached[rank] = progress, now
            self._warned.discard(rank)
        waiting = now - self._reached[rank][1]
        if waiting > 10 * self._patience:
            self._end(f"process {rank} has stalled: no progress for {waiting:.0f} s")
        if waiting > 2 * self._patience and rank not in self._warned:
            self._warned.add(rank)
            text = f"process {self._rank} has waited {waiting:.0f} s for process {rank}"
            print(text, file=sys.stderr, flush=True)

    def _end(self, reason: str) -> NoReturn:
        if not self._ending:
            self._ending = True
            os.write(2, f"error: process {self._rank}: {reason}; {_RESUME}\n".encode())
        os._exit(1)
