"""Two processes, started by real launchers on this machine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_processes import CONFIG

from shakegpt_jax.checkpoints.reader import CheckpointReader

LAUNCHERS = Path(__file__).with_name("launchers")
REJECTED = "has started 2 processes; add --distributed"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "programs", "rejected"),
    [
        ("slurm", ("slurmctld", "munged", "srun"), 2),
        ("open_mpi", ("mpirun",), 2),
        ("two_hosts", ("ip",), 0),
    ],
)
def test_a_launcher_trains_one_run(tmp_path, text_file, name, programs, rejected):
    if os.getuid():
        pytest.skip("needs root")
    if not all(map(shutil.which, programs)):
        pytest.skip(f"needs {', '.join(programs)}")
    config = tmp_path / "small.py"
    config.write_text(CONFIG.format(path=str(text_file)))
    script = LAUNCHERS / f"{name}.sh"
    done = subprocess.run(
        [script, sys.executable, config, tmp_path],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
    ranks = re.findall(r"process (\d) of 2 has 1 of 2 devices", done.stdout)
    assert sorted(ranks) == ["0", "1"]
    assert done.stdout.count(REJECTED) == rejected
    assert CheckpointReader(tmp_path / "run").steps == [6, 12]
