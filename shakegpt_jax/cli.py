"""What the command lines share: how they read arguments and how they end."""

import argparse
import io
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from absl import logging

from shakegpt_jax.errors import DivergedError, SaveError, StoppedBySignalError, UserError


class ArgumentParser(argparse.ArgumentParser):
    """Reads the arguments of a command on a trained run; errors take one line."""

    def __init__(self, module: str, description: str):
        """Add the arguments that say which run."""
        super().__init__(
            prog=f"python -m shakegpt_jax.{module}",
            description=description,
            allow_abbrev=False,
        )
        self.add_argument("--workdir", default="", help="run folder; default: the newest in runs/")

    def add_step(self) -> None:
        """Add the argument that says which checkpoint of the run."""
        self.add_argument(
            "--step",
            type=_step,
            default="best",
            help="checkpoint: best (default), latest or a number",
        )

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        raise UserError(f"{message} (--help lists the arguments)")


def _step(text: str) -> int | str:
    if text in ("best", "latest"):
        return text
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not best, latest or a number")
    return int(text)


def use_compilation_cache() -> None:
    """Keep what XLA compiles in the user's cache folder, so that the next start is quick.

    `JAX_COMPILATION_CACHE_DIR` names another folder; empty, it turns the cache off.
    """
    import jax  # here: --help and mistakes need no JAX

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(caches) / "shakegpt_jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command's `main` and exit.

    The exit code is 0, or after one line on standard error 2 for a `UserError`, 3 for a
    `DivergedError`, 128 plus the signal's number for a `StoppedBySignalError`, and 1 where the
    operating system refuses (a full disk) or nothing can be saved. A reader that closes the pipe
    ends the command quietly, as does Ctrl-C, with 130.
    """
    # Orbax reports every step of a save, and a failed one in hundreds of lines.
    logging.set_verbosity(logging.FATAL)
    threading.excepthook = lambda args: None  # those of its threads; its errors reach us as well
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # closed by the shell
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # rather no umlaut than no run
    try:
        main()
        sys.stdout.flush()
    except (UserError, DivergedError, SaveError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except StoppedBySignalError as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except BrokenPipeError:
        # Python flushes standard output once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, say
        print(f"error: {error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:  # JAX's own is a RuntimeError
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).split("\n")[0] or "out of memory"
        print(f"error: not enough memory for these sizes: {reason}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
