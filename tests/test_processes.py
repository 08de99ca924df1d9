"""Several real processes that train one run."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from shakegpt_jax import load
from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.run_folder import run_lock
from shakegpt_jax.configs import load_config
from shakegpt_jax.reporting.metrics import read_metrics
from shakegpt_jax.training.run import train

ROOT = Path(__file__).parents[1]
CONFIG = """
from shakegpt_jax.config import Config


def get_config():
    config = Config()
    config.model.n_layer, config.model.n_head, config.model.n_embd = 1, 2, 16
    config.model.block_size = config.data.batch_size = 8
    config.model.compute_dtype = "float32"
    config.data.path = {path!r}
    config.train.num_steps, config.train.eval_every = 12, 6
    config.train.steps_per_dispatch, config.train.sample_length = 3, 0
    return config
"""


class Processes:
    """Starts processes of one run and collects what they print."""

    def __init__(self, folder: Path, text_file: Path):
        self.folder, self.workdir = folder, folder / "run"
        self.config = folder / "small.py"
        self.config.write_text(CONFIG.format(path=str(text_file)))
        self.program: list[object] = [ROOT / "run_train.py"]
        self.running: list[subprocess.Popen[str]] = []

    def command(self, *args: object) -> list[str]:
        fixed = ["--config", self.config, "--workdir", self.workdir]
        return [sys.executable, *map(str, [*self.program, *fixed, *args])]

    def start(
        self,
        n: int,
        *args: object,
        n_device: int = 1,
        each=lambda rank: (),
        prefix=lambda rank: (),
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(n_device)}
        self.running = []
        for rank in range(n):
            distributed = f"--coordinator_address={address} --num_processes={n} --process_id={rank}"
            self.running.append(
                subprocess.Popen(
                    [
                        *prefix(rank),
                        *self.command(*(distributed.split() if n > 1 else ()), *args, *each(rank)),
                    ],
                    env=environment,
                    cwd=self.folder,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )

    def finish(self) -> list[tuple[int, str, list[str]]]:
        """Return exit code, standard output and lines of standard error of each process."""
        ended = []
        for process in self.running:
            out, err = process.communicate(timeout=600)
            # What JAX's libraries log is not ours.
            lines = [e for e in err.splitlines() if re.match("error: |process |stopped ", e)]
            ended.append((process.returncode, out, lines))
        return ended

    def run(self, n: int, *args: object, **options) -> list[tuple[int, str, list[str]]]:
        self.start(n, *args, **options)
        return self.finish()

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + 600
        while max((row.step for row in read_metrics(self.workdir)), default=0) < step:
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in self.running)
            time.sleep(0.02)


@pytest.fixture
def many(tmp_path, text_file):
    processes = Processes(tmp_path, text_file)
    yield processes
    for process in processes.running:
        with process:  # closes the pipes
            process.kill()


def losses(workdir: Path) -> list[float]:
    return [row.train_loss for row in read_metrics(workdir)]


@pytest.mark.slow
def test_two_processes_train_as_one(many):
    ended = many.run(2, "--config.train.sample_length=20")
    assert [code for code, _, _ in ended] == [0, 0]
    for rank, (_, _, lines) in enumerate(ended):
        assert lines == [f"process {rank} of 2 has 1 of 2 devices (cpu)"]
    assert "step 12/12" in ended[0][1] and "O God, O God!" in ended[0][1]
    assert not re.sub(r"\[Gloo\].*\n", "", ended[1][1])

    # One process with two devices writes the same, and reads what two have written.
    alone = many.folder / "alone"
    config = load_config(str(many.config)).freeze().replace({"mesh.data": 2})
    train(config, alone)
    np.testing.assert_allclose(losses(many.workdir), losses(alone), rtol=1e-4)
    for ours, theirs in zip(
        *(jax.tree.leaves(load(w).params) for w in (many.workdir, alone)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-4)


def test_processes_that_differ_are_refused(many):
    def each(rank):
        return [f"--config.train.seed={rank}", f"--config.optimizer.b1=0.{rank + 8}"]

    ended = many.run(2, each=each)
    assert [code for code, _, _ in ended] == [2, 2]
    for _, _, lines in ended:
        assert lines[1:] == [
            "error: the processes differ in config.optimizer.b1, config.train.seed; start them all "
            "with the same command"
        ]
    assert not many.workdir.exists()


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_any_split_of_devices_trains_alike_and_resumes(many, n):
    mesh = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.train.num_steps=54"]
    assert [code for code, _, _ in many.run(n, *mesh, n_device=4 // n)] == [0] * n
    split, many.workdir = many.workdir, many.folder / "alone"
    assert many.run(1, *mesh, n_device=4)[0][0] == 0
    np.testing.assert_allclose(losses(split), losses(many.workdir), rtol=2e-4)
    # Checkpoints move both ways.
    longer = "--config.train.num_steps=54", "--config.mesh.data=-1"
    for workdir, count, devices in ((many.workdir, n, 4 // n), (split, 1, 4)):
        for path in (workdir / "checkpoints").iterdir():
            if path.name == "54":  # resume from step 48
                path.rename(many.folder / f"removed{count}")
        many.workdir = workdir
        assert {code for code, _, _ in many.run(count, *longer, n_device=devices)} == {0}
        assert CheckpointReader(workdir).steps[-1] == 54
    np.testing.assert_allclose(losses(split), losses(many.workdir), rtol=2e-4)


ON_HOST = """
from shakegpt_jax.cli.command import run_command
from shakegpt_jax.train_model import main
from shakegpt_jax.training import trainer

trainer._MAX_DEVICE_BYTES = 0
run_command(main)
"""


@pytest.mark.slow
def test_each_process_reads_its_windows_of_a_text_on_the_host(many):
    assert [code for code, _, _ in many.run(2)] == [0, 0]
    on_device, many.workdir = many.workdir, many.folder / "on_host"
    many.program = ["-c", ON_HOST]
    assert [code for code, _, _ in many.run(2)] == [0, 0]
    np.testing.assert_allclose(losses(on_device), losses(many.workdir), rtol=1e-5)


SLOW = """
import time

from shakegpt_jax.cli.command import run_command
from shakegpt_jax.train_model import main
from shakegpt_jax.training import run


def slow(*arguments, draw_run=run.draw_run):
    time.sleep(25)
    return draw_run(*arguments)


run.draw_run = slow
run_command(main)
"""


@pytest.mark.slow
def test_the_others_wait_while_process_0_draws_the_curves(many):
    many.program = ["-c", SLOW]
    ended = many.run(2, "--heartbeat_seconds=15")
    assert [code for code, _, _ in ended] == [0, 0]
    assert ended[0][1].rstrip().splitlines()[-1].startswith(("Curves: ", "No curves: "))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_at_the_same_step(many, rank):
    many.start(2, "--config.train.num_steps=100000")
    many.wait_for_step(9)
    many.running[rank].send_signal(signal.SIGTERM)
    ended = many.finish()
    assert [code for code, _, _ in ended] == [143, 143]
    (line,) = {lines[-1] for _, _, lines in ended}
    step = int(re.search(r"stopped at step (\d+), saved", line)[1])
    assert CheckpointReader(many.workdir).steps[-1] == step
    assert read_metrics(many.workdir)[-1].step == step


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_the_other_ends_if_a_process_is_lost(many, rank):
    many.start(2, "--config.train.num_steps=100000", "--heartbeat_seconds=15")
    many.wait_for_step(9)
    many.running[rank].kill()
    codes = [code for code, _, _ in many.finish()]
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] != 0


@pytest.mark.slow
def test_a_run_that_lost_a_process_resumes_bit_for_bit(many):
    args = "--config.train.num_steps=300", "--config.model.dropout=0.1", "--heartbeat_seconds=15"
    assert [code for code, _, _ in many.run(2, *args)] == [0, 0]
    whole, many.workdir = many.workdir, many.folder / "killed"
    many.start(2, *args)
    many.wait_for_step(33)  # the save of step 30 waits for that of step 24
    many.running[1].kill()
    codes = [code for code, _, _ in many.finish()]
    assert codes[0] != 0 and codes[1] == -signal.SIGKILL
    stopped = CheckpointReader(many.workdir).steps[-1]
    assert 24 <= stopped < 300
    (code, out, _), _ = many.run(2, *args)
    assert code == 0 and f"resumes at step {stopped} of 300" in out
    assert losses(many.workdir) == losses(whole)
    for ours, theirs in zip(
        *(jax.tree.leaves(load(w, step=300).params) for w in (many.workdir, whole)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_all(many, rank):
    options = "--config.mesh.data=1", "--config.mesh.fsdp=2", "--heartbeat_seconds=15"

    def limit(each: int) -> list[str]:
        return ["prlimit", "--fsize=20:"] * (each == rank)  # bytes per file, as on a full disk

    ended = many.run(2, *options, "--config.train.num_steps=100", prefix=limit)
    assert all(code for code, _, _ in ended)
    error = ended[rank][2][-1]
    assert error.startswith("error: could not save the checkpoint of step 6")
    assert error.endswith("; there is no earlier checkpoint")


@pytest.mark.slow
def test_an_error_of_process_0_alone_ends_all(many):
    many.workdir.mkdir()
    with run_lock(many.workdir):
        ended = many.run(2, "--heartbeat_seconds=15")
    assert [code for code, _, _ in ended] == [2, 2]
    assert "is in use by the training process" in ended[0][2][-1]
    assert ended[1][2][-1] == "error: process 0 has failed"


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--distributed"], {}, "coordinator_address should be defined"),
        (["--coordinator_address=host:1", "--num_processes=2"], {}, "The process id of the curre"),
        (["--coordinator_address=host"], {}, "--coordinator_address is 'host'; it must be HOST:P"),
        ([], {"SLURM_STEP_NUM_TASKS": "16"}, "has started 16 processes; add --distributed"),
        ([], {"OMPI_COMM_WORLD_SIZE": "2"}, "has started 2 processes; add --distributed"),
    ],
)
def test_says_what_is_missing(many, monkeypatch, arguments, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ((code, out, lines),) = many.run(1, *arguments)
    assert (code, out) == (2, "")
    assert message in lines[-1]
    assert not many.workdir.exists()
