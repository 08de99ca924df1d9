"""Several processes that train together. Each of these functions also works for one alone."""

import functools
import os
import re
import signal
import sys
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from shakegpt_jax.errors import UserError

_BY_HAND = "give --coordinator_address=HOST:PORT --num_processes=N --process_id=I"


def connect(
    distributed: bool, address: str | None, n: int | None, rank: int | None, heartbeat_seconds: int
) -> None:
    """Connect this process, `rank` of `n`, to the others until `jax.distributed.shutdown`.

    With `distributed`, JAX asks the launcher (SLURM, Open MPI 4) for what is not given. JAX ends
    all processes `heartbeat_seconds` after one is lost.
    """
    if not distributed and (address, n, rank) == (None, None, None):
        names = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
        if (started := max(os.environ.get(name, "1") for name in names)) != "1":
            raise UserError(
                f"the launcher has started {started} processes; add --distributed to train with "
                "all of them, or start only one"
            )
        return
    if address and not re.fullmatch(r".+:\d{1,5}", address):
        raise UserError(f"--coordinator_address is {address!r}; it must be HOST:PORT")
    say = functools.partial(print, file=sys.stderr, flush=True)
    say("connecting to the other processes")
    jax.config.update("jax_enable_preemption_service", False)  # its SIGTERM handler replaces ours
    # Python cannot run handlers while `initialize` blocks: until then, a signal kills.
    signals = signal.SIGINT, signal.SIGTERM
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in signals}
    try:
        jax.distributed.initialize(
            address,
            n,
            rank,
            cluster_detection_method=None if distributed else "deactivate",
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=heartbeat_seconds,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot connect to the other processes: {reason}; {_BY_HAND}") from error
    for number, handler in handlers.items():
        signal.signal(number, handler)
    say(
        f"process {jax.process_index()} of {jax.process_count()} has {jax.local_device_count()} of "
        f"{jax.device_count()} devices ({jax.local_devices()[0].device_kind})"
    )


def is_primary() -> bool:
    """Return whether this is process 0, which prints, and writes all but the arrays."""
    return jax.process_index() == 0


def highest(value: int) -> int:
    """Return the highest value of all processes, which must all call this and the next two."""
    return int(multihost_utils.process_allgather(np.int32(value)).max())


def primary_first(function: Callable[[], object]) -> None:
    """Run a function in process 0, which the others wait for; they fail if it does."""
    try:
        if is_primary():
            function()
    except Exception:
        highest(1)
        raise
    if highest(0):
        raise UserError("process 0 has failed")


def check_equal(values: dict[str, Any]) -> None:
    """Raise a `UserError` in all processes if some of these values, by name, differ among them."""
    digests = np.array([zlib.crc32(repr(value).encode()) for value in values.values()], np.uint32)
    equal = (multihost_utils.process_allgather(digests) == digests).all(0)
    if differing := [name for name, same in zip(values, equal, strict=True) if not same]:
        raise UserError(
            f"the processes differ in {', '.join(differing)}; start them all with the same command"
        )
