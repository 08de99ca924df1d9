"""Running a command: signals, exit codes, compilation cache, optional packages.

Commands import everything else inside their `main`, so that Ctrl-C is handled from the first
moment, and JAX only after their arguments are parsed.
"""

import importlib
import io
import json
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from shakegpt_jax.errors import DivergedError, SaveError, StoppedBySignalError, UserError

STARTED = time.perf_counter()  # about when the process started


def use_compilation_cache() -> None:
    """Cache compiled programs in the user's cache folder, which makes the next start faster.

    `JAX_COMPILATION_CACHE_DIR` selects another folder; an empty string disables the cache.
    """
    import jax

    # A folder that cannot be written only costs time.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(caches) / "shakegpt_jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def printable(text: str) -> str:
    """Escape what could steer a terminal, such as control characters in a file of others."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def dump_json(value: Any, indent: int | None = None) -> str:
    """Return strict JSON, with null for infinite numbers and NaN, which JSON cannot express."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run the `main` of a command and exit.

    The exit codes; nonzero ones come with one line on standard error unless noted:

    - 0: success, or a closed pipe;
    - 1: the operating system reports an error (a full disk), or checkpoints cannot be saved;
    - 2: a `UserError`, or too little memory;
    - 3: a `DivergedError`;
    - 128 plus the signal number: a `StoppedBySignalError`. A signal outside training has the same
      code and prints nothing.
    """
    exit_on_signal()
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # closed by the shell
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows question marks
    try:
        main()
        sys.stdout.flush()
    except (UserError, DivergedError, SaveError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except StoppedBySignalError as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except BrokenPipeError:
        _discard_output()
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"error: {printable(reason)}", file=sys.stderr)
        _discard_output()
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:  # JAX raises a RuntimeError
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).split("\n")[0] or "out of memory"
        print(f"error: not enough memory for these sizes: {reason}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


def _discard_output() -> None:
    """Redirect standard output to os.devnull, so that the flush at exit cannot fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def exit_on_signal() -> None:
    """From now on, exit silently with 128 plus its number if a signal arrives.

    Python's own KeyboardInterrupt is printed and ignored if it is raised inside a callback, such
    as those that JAX registers with the garbage collector.
    """
    for number in _SIGNALS:
        signal.signal(number, lambda number, frame: os._exit(128 + number))


class StopSignal:
    """The first signal that arrived inside `record_signal`, if any."""

    received: int | None = None

    def record(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: record it, and let the next one kill the process."""
        self.received = number
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)


@contextmanager
def record_signal() -> Iterator[StopSignal]:
    """Record the first signal inside the `with` block; a second one kills the process.

    Outside the main thread, where Python does not allow handlers, signals keep their effect.
    """
    stop = StopSignal()
    is_main = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, stop.record) for n in _SIGNALS if is_main}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def import_extra(module: str, *, extra: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: its name, such as "safetensors.numpy".
        extra: what installs the package.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise UserError(f"this needs {package}: pip install -e '.[{extra}]'") from error
