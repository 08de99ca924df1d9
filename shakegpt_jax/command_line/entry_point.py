"""Running a command: signals, exit codes, compilation cache.

Commands import everything else inside their `main`, so that Ctrl-C is handled from the first
moment, and JAX only after their arguments are parsed.
"""

import io
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from shakegpt_jax.command_line.signals import exit_on_signal
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
