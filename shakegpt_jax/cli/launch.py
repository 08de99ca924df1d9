"""Which process of a distributed run this is, from arguments or the launcher's environment."""

import os
import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from shakegpt_jax.errors import UserError

_FIRST_PORT, _N_PORT = 61_440, 4_096  # for addresses that a job number chooses
_BY_HAND = "--coordinator_address=HOST:PORT --num_processes=N --process_id=I"
# Variables that launchers set for every process: number of processes, own rank.
_LAUNCHERS = {
    "SLURM": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "MPI": ("PMI_SIZE", "PMI_RANK"),
}


class Launch(NamedTuple):
    """One process of several."""

    coordinator_address: str  # host and port of process 0
    num_processes: int
    process_id: int
    local_device_ids: list[int] | None  # None: all that are visible


def find_launch(
    *,
    distributed: bool,
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    environ: Mapping[str, str] = os.environ,
) -> Launch | None:
    """Combine the arguments with what SLURM or Open MPI says; None: this process is alone.

    Raises:
        UserError: if something is missing or contradictory, or a launcher started several
            processes that would know nothing of each other.
    """
    launcher = _launcher(environ)
    if not (distributed or coordinator_address or (num_processes, process_id) != (None, None)):
        if launcher and (n := _number(environ, _LAUNCHERS[launcher][0])) > 1:
            raise UserError(
                f"{launcher} started {n} processes; add --distributed to train with all of them, "
                "or start only one"
            )
        return None
    if launcher:
        n, rank = (_number(environ, name) for name in _LAUNCHERS[launcher])
        num_processes = n if num_processes is None else num_processes
        process_id = rank if process_id is None else process_id
        coordinator_address = coordinator_address or _address(launcher, environ)
    if num_processes == 1:
        return None
    if coordinator_address is None or num_processes is None or process_id is None:
        absent = [
            name
            for name, value in {
                "--coordinator_address": coordinator_address,
                "--num_processes": num_processes,
                "--process_id": process_id,
            }.items()
            if value is None
        ]
        where = f"{launcher} does not say" if launcher else "no launcher was found that says"
        raise UserError(f"{where} {' and '.join(absent)}; give {_BY_HAND}")
    match = re.fullmatch(r"(\[[^\]]+\]|[^:\s]+):([0-9]{1,5})", coordinator_address)
    if not match or not 1 <= int(match[2]) < 65_536:
        raise UserError(
            f"--coordinator_address is {coordinator_address!r}; it must be HOST:PORT, "
            "with a port from 1 to 65535"
        )
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id is {process_id} and --num_processes {num_processes}; "
            "the id must be at least 0 and below that number"
        )
    return Launch(coordinator_address, num_processes, process_id, _local_devices(launcher, environ))


def _launcher(environ: Mapping[str, str]) -> str | None:
    """Return the launcher of this process, if it is known."""
    for launcher, names in _LAUNCHERS.items():
        if all(name in environ for name in names):
            return launcher
    return None


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError as error:
        raise UserError(f"{name} is {environ[name]!r}, not a number; give {_BY_HAND}") from error


def _address(launcher: str, environ: Mapping[str, str]) -> str | None:
    """Return the address of process 0, which has the first host of the job; None: not known."""
    if launcher not in ("SLURM", "Open MPI"):
        return None
    if launcher == "SLURM":  # node[001-015,020],host2
        first = re.match(r"([^,\[]+)(?:\[(\d+))?", environ.get("SLURM_STEP_NODELIST", ""))
        host = first and first[1] + (first[2] or "")
        job = f"{environ.get('SLURM_JOB_ID')}.{environ.get('SLURM_STEP_ID')}"
    elif environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == environ.get("OMPI_COMM_WORLD_SIZE"):
        host, job = "127.0.0.1", environ.get("PMIX_NAMESPACE", "")
    else:  # Open MPI 4 says where mpirun runs; 5 does not
        uri = environ.get("OMPI_MCA_orte_hnp_uri", "")
        found = re.search(r"tcp6?://\[?([^,\]:]+)", uri)
        host, job = found and found[1], uri
    return f"{host}:{_FIRST_PORT + zlib.crc32(job.encode()) % _N_PORT}" if host else None


def _local_devices(launcher: str | None, environ: Mapping[str, str]) -> list[int] | None:
    """Return the GPU of this process, if several processes of a host see the same ones."""
    if len(environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")) == 1:
        return None
    if launcher == "SLURM":
        # Tasks per node, in the notation 4(x2),1.
        counts = re.findall(r"\d+", environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
        return [_number(environ, "SLURM_LOCALID")] if counts[0] != "1" else None
    if launcher == "Open MPI" and environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1") != "1":
        return [_number(environ, "OMPI_COMM_WORLD_LOCAL_RANK")]
    return None
