"""Running a command: signals, exit codes, compilation cache, optional packages.

Commands import everything else inside their `main`, so that Ctrl-C is handled from the first
moment, and JAX only after their arguments are parsed.
"""

import importlib
import io
import json
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from shakegpt_jax.errors import DivergedError, SaveError, StoppedBySignalError, UserError

STARTED = time.perf_counter()  # about when the process started

# Settings of JAX with which a seed would give another text.
_OTHER_NUMBERS = ("JAX_ENABLE_X64", "JAX_DEFAULT_PRNG_IMPL", "JAX_THREEFRY_PARTITIONABLE")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def use_compilation_cache() -> None:
    """Cache compiled programs, unless JAX_COMPILATION_CACHE_DIR is set ("" disables the cache)."""
    import jax

    # A folder that cannot be written only costs time.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if os.path.isabs(caches):  # it is not where the user has no home
            jax.config.update("jax_compilation_cache_dir", os.path.join(caches, "shakegpt_jax"))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def printable(text: str) -> str:
    """Escape control characters, with which an untrusted file could drive the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def dump_json(value: Any, indent: int | None = None) -> str:
    """Return strict JSON, with null for infinite numbers and NaN, which JSON cannot express."""
    finite = json.loads(json.dumps(value), parse_constant=lambda name: None)
    return json.dumps(finite, indent=indent)


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run the `main` of a command and exit, with the codes that docs/runs.md lists."""
    # Python's own KeyboardInterrupt is printed and ignored if it is raised inside a callback, such
    # as those that JAX registers with the garbage collector.
    for number in _SIGNALS:
        signal.signal(number, lambda number, frame: os._exit(128 + number))
    for name in _OTHER_NUMBERS:
        os.environ.pop(name, None)
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
    except (MemoryError, RuntimeError, AssertionError, ValueError) as error:
        if not (problem := _describe(error)):
            raise
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


def _describe(error: Exception) -> str | None:
    """Return what JAX could not do on this machine; None: it is a fault of the program."""
    if isinstance(error, MemoryError) or re.search(
        "RESOURCE_EXHAUSTED|out of memory", str(error), re.IGNORECASE
    ):
        reason = str(error).split("\n")[0] or "out of memory"
        return f"not enough memory for these sizes: {reason}"
    if "for JAX flag" in str(error):  # an environment variable
        return str(error)
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
        if not (platform := os.environ.get(name)):
            continue
        import jax

        try:
            jax.devices()
        except (RuntimeError, AssertionError):
            return (
                f"{name} is {platform!r}, which JAX cannot use here; unset it, so that JAX "
                "chooses, or set it to cpu (for NVIDIA GPUs: pip install 'shakegpt-jax[cuda12]')"
            )
    return None


def _discard_output() -> None:
    """Redirect standard output to os.devnull, so that the flush at exit cannot fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class StopSignal:
    """The first signal that arrived inside `record_signal`, if any."""

    received: int | None = None


@contextmanager
def record_signal(notice: str = "") -> Iterator[StopSignal]:
    """Record the first signal inside the `with` block, and show `notice` on a terminal.

    A second one kills the process. Outside the main thread, where Python does not allow handlers,
    signals keep their effect.
    """
    stop = StopSignal()

    def record(number: int, frame: FrameType | None) -> None:
        stop.received = number
        if notice and os.isatty(2):
            os.write(2, f"\n{notice}\n".encode())  # printing is not allowed in a handler
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    is_main = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, record) for n in _SIGNALS if is_main}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def import_extra(module: str, *, extra: str) -> Any:
    """Import a module of an optional package, which `extra` installs, or raise a `UserError`."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise UserError(f"this needs {package}: pip install 'shakegpt-jax[{extra}]'") from error
