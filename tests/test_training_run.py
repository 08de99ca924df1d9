"""`train`: evaluations, checkpoints, resuming, signals, divergence, locks."""

import gzip
import json
import math
import os
import re
import signal
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import Crash, crash_at_9

from configs import cpu
from shakegpt_jax import load
from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.run_folder import run_lock
from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import load_corpus
from shakegpt_jax.data.windows import gather_windows
from shakegpt_jax.errors import DivergedError, StoppedBySignalError, UserError
from shakegpt_jax.inference import PROMPT, choose_prompt
from shakegpt_jax.model.gpt import GPT
from shakegpt_jax.reporting.metrics import Evaluation, read_metrics
from shakegpt_jax.sharding import make_mesh
from shakegpt_jax.training.optimizer import make_schedule
from shakegpt_jax.training.run import train
from shakegpt_jax.training.step import make_chunk, window_starts
from shakegpt_jax.training.trainer import Trainer, check_memory, memory_limit

TIMES = ("train_time", "wall_time", "characters_per_second")


def reproducible(workdir: Path) -> list[dict]:
    rows = [row.to_json() for row in read_metrics(workdir)]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def states_are_equal(config: Config, *workdirs: Path) -> bool:
    trainer = Trainer(config, load_corpus(config.data.path, 8), make_mesh(config))
    states = []
    for workdir in workdirs:
        trainer.restore(CheckpointReader(workdir), config.train.num_steps)
        states.append(trainer.state)
    return jax.tree.all(jax.tree.map(np.array_equal, *states))


def test_writes_metrics_checkpoints_and_samples(run_config, tmp_path, capsys):
    run_config.train.sample_length = 30
    train(run_config.freeze(), tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert [row.step for row in rows] == [3, 6, 9, 12]
    assert [row.step for row in rows if row.evaluation] == [6, 12]
    times = [row.train_time for row in rows]
    assert times == sorted(times)
    assert all(row.wall_time > row.train_time for row in rows)
    last = rows[-1].evaluation
    assert last and last.count == 1_999
    assert last.perplexity == pytest.approx(np.exp(last.loss))
    assert CheckpointReader(tmp_path / "run").steps == [6, 12]
    out = capsys.readouterr().out
    assert out.count("validation loss") == 3  # twice, and once in the summary
    assert f"validation loss {last.loss:.4f}" in out
    assert out.count("O God, O God!") == 3
    assert "shakegpt generate --workdir" in out
    n_parameter = sum(each.size for each in jax.tree.leaves(load(tmp_path / "run").params))
    *known, memory, time = out.splitlines()[:8]
    assert known == [
        f"model    {n_parameter:,} parameters: n_layer 1, n_head 2, n_embd 16",
        "device   1 x cpu; matmuls in float32",
        f"text     {run_config.data.path}",
        "         20,000 characters, vocabulary of 58",
        "split    18,000 to train, 2,000 to validate",
        "steps    12 with 8 windows of 8 characters each: 0.0427 epochs",
    ]
    assert re.fullmatch(r"memory   \d+\.\d [kM]B of \d+\.\d [GT]B on each device .*", memory)
    assert re.fullmatch(r"time     about 0\.\d s of training, and evaluations", time)

    train(run_config, tmp_path / "run")
    assert "has finished at step 12 of 12" in capsys.readouterr().out
    assert read_metrics(tmp_path / "run") == rows


def test_profiles_steps_of_the_same_run(run_config, tmp_path, finished, capsys):
    train(run_config.freeze(), tmp_path / "run", profile=3)
    assert reproducible(tmp_path / "run") == reproducible(finished)
    path = re.search(r"Profile: (.*)\n", capsys.readouterr().out)[1]
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    times = Counter(each["name"] for each in events if each.get("ph") == "X")  # that each op ran
    assert Counter(times.values()).most_common(1)[0][0] == 3
    with pytest.raises(UserError, match="--profile is 4; it must be at most 3"):
        train(run_config, tmp_path / "run", profile=4)
    train(run_config, tmp_path / "run", profile=3)
    assert "no profile: fewer than 6 steps were left" in capsys.readouterr().out


def test_evaluates_and_ends_at_the_right_steps(run_config, tmp_path):
    run_config.train.eval_every = 5
    train(run_config.freeze(), tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert [row.step for row in rows] == [3, 5, 8, 10, 12]
    assert [row.step for row in rows if row.evaluation] == [5, 10, 12]


def test_default_prompt_is_a_line_of_the_text_if_it_cannot_be_encoded(corpus):
    assert choose_prompt(corpus.tokenizer.vocabulary, "anything") == PROMPT
    assert choose_prompt("\n abc", "b\n\nabc cba\ncab") == "abc cba"
    assert choose_prompt("\n abc", "ab") == "ab"
    assert choose_prompt("ab", "ab" * 50) == "ab" * 10
    assert choose_prompt("\n", "\n\n") == "\n\n"


def test_resuming_after_a_crash_is_bit_exact(run_config, tmp_path, finished):
    config = run_config.freeze()
    with pytest.raises(Crash):
        train(config, tmp_path / "crashed", callbacks=[crash_at_9])
    assert [row.step for row in read_metrics(tmp_path / "crashed")] == [3, 6, 9]
    assert CheckpointReader(tmp_path / "crashed").steps == [6]
    train(config, tmp_path / "crashed")
    assert reproducible(tmp_path / "crashed") == reproducible(finished)
    assert states_are_equal(config, tmp_path / "crashed", finished)


def _train_with_optimizations(config: Config, workdir: Path, stop: bool) -> None:
    """Train as a user does, if asked until a signal arrives at step 9."""
    os.environ.pop("XLA_FLAGS", None)  # of conftest
    assert not jax.config.values["jax_disable_most_optimizations"]
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # ends with the process

    def stop_at_9(row: dict) -> None:
        if stop and row["step"] == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        train(config, workdir, callbacks=[stop_at_9])
    except StoppedBySignalError as error:
        assert "stopped at step 9, saved in" in str(error)
        sys.exit(error.exit_code)


@pytest.mark.slow
def test_resuming_after_a_signal_is_bit_exact_with_xla_optimizations(
    run_config, tmp_path, processes
):
    """Dropout included. Each part runs in a process of its own."""
    run_config.model.dropout = 0.1
    config = run_config.freeze()

    def exit_code(name: str, stop: bool = False) -> int:
        args = (config, tmp_path / name, stop)
        process = processes.Process(target=_train_with_optimizations, args=args)
        process.start()
        process.join()
        return process.exitcode

    assert exit_code("whole") == 0
    assert exit_code("stopped", stop=True) == 128 + signal.SIGTERM
    checkpoints = CheckpointReader(tmp_path / "stopped")
    assert (checkpoints.find("latest"), checkpoints.find("best")) == (9, 6)  # 9 was not evaluated
    assert [row.step for row in read_metrics(tmp_path / "stopped")] == [3, 6, 9]
    assert exit_code("stopped") == 0
    assert reproducible(tmp_path / "stopped") == reproducible(tmp_path / "whole")
    assert states_are_equal(config, tmp_path / "stopped", tmp_path / "whole")


def _send_loss_of_cpu_config(queue) -> None:
    os.environ.pop("XLA_FLAGS", None)  # of conftest
    assert not jax.config.values["jax_disable_most_optimizations"]
    config = cpu.get_config().freeze()
    trainer = Trainer(config, load_corpus("", config.model.block_size), make_mesh(config))
    trainer.initialize()
    chunks = list(trainer.run(0, 200))
    assert [chunk.step for chunk in chunks] == [50, 100, 150, 200]
    queue.put(chunks[-1].train_loss)


@pytest.mark.slow
def test_cpu_config_learns_as_fast_as_measured(processes):
    """The mean training loss of steps 151 to 200 of configs/cpu.py.

    2.228 with jax 0.10.2 on an x86-64 CPU. Other processors round differently, and a change that
    means to alter the numbers updates the value.
    """
    queue = processes.Queue()
    process = processes.Process(target=_send_loss_of_cpu_config, args=(queue,))
    process.start()
    loss = queue.get(timeout=100)
    process.join()
    print(f"training loss {loss:.4f}")
    assert loss == pytest.approx(2.228, rel=0.02)


def test_stops_at_the_target_loss(run_config, tmp_path, capsys):
    run_config.train.target_loss = 100.0
    train(run_config.freeze(), tmp_path / "run")
    out = " ".join(capsys.readouterr().out.split())
    assert "reached the target loss of 100.0" in out
    assert "6 of 12, after" in out
    assert CheckpointReader(tmp_path / "run").steps == [6]
    train(run_config, tmp_path / "run")
    assert "has finished at step 6 of 12" in capsys.readouterr().out
    train(run_config.replace({"train.target_loss": 1e-3}), tmp_path / "run")  # resumes
    assert CheckpointReader(tmp_path / "run").steps == [6, 12]
    assert "reached" not in capsys.readouterr().out


def test_stores_an_absolute_text_path(run_config, tmp_path, monkeypatch):
    text_file = Path(run_config.data.path)
    monkeypatch.chdir(text_file.parent)
    run_config.data.path = "text.txt"
    train(run_config.freeze(), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    lm = load(tmp_path / "run")
    assert lm.config.data.path == str(text_file)
    assert lm.load_corpus().sha256 == lm.text_sha256


def test_nonfinite_numbers_end_the_run_and_save_nothing(run_config, tmp_path):
    run_config.optimizer.learning_rate = 1e30
    with pytest.raises(DivergedError, match="in steps 1 to 3; there is no earlier checkpoint"):
        train(run_config.freeze(), tmp_path / "run")
    assert read_metrics(tmp_path / "run") == []
    assert CheckpointReader(tmp_path / "run").steps == []


def test_infinite_perplexity_ends_the_run_and_is_not_saved(run_config, tmp_path, monkeypatch):
    evaluations = iter([Evaluation.from_losses(np.full(3, loss)) for loss in (4.0, 800.0)])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: next(evaluations))
    message = "^perplexity is inf in steps 10 to 12; the last good checkpoint is that of step 6;"
    with pytest.raises(DivergedError, match=message):
        train(run_config.freeze(), tmp_path / "run")
    assert CheckpointReader(tmp_path / "run").steps == [6]
    assert [row.step for row in read_metrics(tmp_path / "run")] == [3, 6, 9]


def test_signal_before_the_first_step(run_config, tmp_path, monkeypatch):
    init = Trainer.__init__

    def init_and_stop(self, *args):
        init(self, *args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "__init__", init_and_stop)
    message = "stopped at step 0; run the same command again to resume"
    with pytest.raises(StoppedBySignalError, match=message) as ended:
        train(run_config.freeze(), tmp_path / "run")
    assert ended.value.exit_code == 143
    assert CheckpointReader(tmp_path / "run").steps == []


class PoisonedGPT(GPT):
    """Has no finite loss for windows with a certain character in them."""

    def __call__(self, idx_BxT, *, train=False):
        poison = jnp.where(train & (idx_BxT == self.vocab_size - 1).any(), jnp.nan, 0.0)
        return super().__call__(idx_BxT, train=train) + poison


@pytest.mark.slow
def test_skips_nonfinite_updates(config, tmp_path, text, monkeypatch):
    monkeypatch.setattr("shakegpt_jax.training.trainer.GPT", PoisonedGPT)
    pieces = [text[i : i + 150] for i in range(0, 18_000, 150)]
    (tmp_path / "text.txt").write_text("~".join(pieces) + text[18_000:])
    config.data.path = str(tmp_path / "text.txt")
    config.train.num_steps, config.train.eval_every = 24, 12
    ids = jnp.asarray(load_corpus(config.data.path, 8).train_ids)
    starts = window_starts(0, jnp.arange(24), len(ids), config.data, 8)
    windows = gather_windows(ids, starts, 8)
    poisoned = (windows[:, :, :-1] == ids.max()).any((1, 2)).tolist()
    longest = max(len(run) for run in "".join("01"[p] for p in poisoned).split("0"))
    assert longest >= 2 and not all(poisoned)

    def attempt(most: int) -> list:
        config.optimizer.max_skipped_updates = most
        train(config.replace({}), tmp_path / str(most))
        return read_metrics(tmp_path / str(most))

    applied = "".join("01"[p] for p in poisoned).index("1" * longest) + longest - 1
    chunk = f"in steps {applied // 3 * 3 + 1} to {applied // 3 * 3 + 3};"
    with pytest.raises(DivergedError, match=f"^loss is nan and gradient_norm is nan {chunk}"):
        attempt(longest - 1)
    rows = attempt(longest)
    skipped = [sum(poisoned[i : i + 3]) for i in range(0, 24, 3)]
    assert [row.skipped_updates for row in rows] == skipped
    schedule = make_schedule(config.optimizer, 24)  # does not advance where updates are skipped
    counts = [i - sum(poisoned[:i]) for i in range(2, 24, 3)]
    rates = [row.learning_rate for row in rows]
    np.testing.assert_allclose(rates, [schedule(count) for count in counts], rtol=1e-5)
    for row, n in zip(rows, skipped, strict=True):
        assert (row.train_loss is None) == (n == 3)
        assert n == 3 or math.isfinite(row.train_loss + row.gradient_norm)
    params = load(tmp_path / str(longest)).params
    assert all(jnp.isfinite(p).all() for p in jax.tree.leaves(params))


def test_one_process_per_run_folder(run_config, finished_copy):
    (finished_copy / "lock").write_text("99999")  # of a process that has ended
    in_use = f"in use by the training process {os.getpid()};"
    with run_lock(finished_copy), pytest.raises(UserError, match=in_use):
        train(run_config.freeze(), finished_copy)
    train(run_config, finished_copy)


def test_refuses_another_run_in_the_folder(run_config, finished_copy, tmp_path, text):
    before = (finished_copy / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match=r"different train.seed \(saved 0, now 5\);") as error:
        train(run_config.freeze().replace({"train.seed": 5}), finished_copy)
    assert "n_layer" not in str(error.value)
    (tmp_path / "other.txt").write_text(text + "O")
    with pytest.raises(UserError, match=r"with a different text \(now "):
        train(run_config.replace({"data.path": str(tmp_path / "other.txt")}), finished_copy)
    longer = run_config.replace({"train.num_steps": 24})
    with pytest.raises(UserError, match=r"num_steps \(saved 12, now 24\); ") as error:
        train(longer, finished_copy)
    how = re.search(
        r"--workdir=(\S+), and --config.train.init_from=(\S+) to start", str(error.value)
    )
    train(longer.replace({"train.init_from": how[2]}), how[1])
    assert CheckpointReader(how[1]).steps[-1] == 24
    train(run_config.replace({"train.sample_length": 9}), finished_copy)  # may change
    assert (finished_copy / "metrics.jsonl").read_text() == before


def test_trains_outside_the_main_thread(run_config, tmp_path, finished):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with ThreadPoolExecutor(1) as thread:
        thread.submit(train, run_config.freeze(), tmp_path / "run").result()
    assert reproducible(tmp_path / "run") == reproducible(finished)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("replacement", [True, False])
def test_64_bit_types_change_nothing(run_config, tmp_path, replacement):
    config = run_config.replace({"data.replacement": replacement, "model.dropout": 0.1})
    train(config, tmp_path / "32")
    with jax.enable_x64(True):
        train(config.replace({"train.eval_every": 12}), tmp_path / "64")
        train(config, tmp_path / "64")  # reads the checkpoint
        other = load(tmp_path / "64")
        text, scores = other.generate("First", 12, temperature=0.8, top_p=0.9), other.score("First")
    ours, theirs = (
        {row["step"]: (row["train_loss"], row["gradient_norm"]) for row in reproducible(workdir)}
        for workdir in (tmp_path / "32", tmp_path / "64")
    )
    assert ours == theirs
    lm = load(tmp_path / "32", step=12)
    assert text == lm.generate("First", 12, temperature=0.8, top_p=0.9)
    np.testing.assert_array_equal(scores, lm.score("First"))


def test_refuses_a_model_that_does_not_fit_into_memory(run_config, tmp_path):
    config = run_config.replace({"model.n_embd": 65_536, "model.n_layer": 100})
    with pytest.raises(UserError, match=r"parameters needs at least .* GB to train"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_needs_memory_for_parameters_gradients_and_moments(run_config, monkeypatch, name):
    config = run_config.replace({"model.n_embd": 64, "optimizer.name": name})
    chunk = make_chunk(config, GPT(config.model, 65), make_mesh(config))
    state = chunk.abstract_state
    arrays = jax.tree.leaves((state.params, state.params, state.opt_state))
    needed = sum(math.prod(array.shape) * 4 for array in arrays)
    limits = iter([needed, 0.9 * needed])  # of Muon, only the matrices are counted exactly
    monkeypatch.setattr("shakegpt_jax.training.trainer.memory_limit", lambda: next(limits))
    check_memory(config, 65, make_mesh(config))
    with pytest.raises(UserError, match=r"a model of \d+,\d+ parameters"):
        check_memory(config, 65, make_mesh(config))


@pytest.mark.parametrize(
    ("groups", "name"),
    [
        ("0::/\n", "memory.max"),
        ("0::/a/b\n", "a/memory.max"),
        ("0::/not/visible\n", "memory.max"),
        ("9:cpu:/x\n4:memory:/a\n", "memory/a/memory.limit_in_bytes"),
    ],
)
def test_reads_the_memory_limit_of_the_cgroups(tmp_path, groups, name):
    assert memory_limit(tmp_path) > 1_000
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    path = tmp_path / "sys/fs/cgroup" / name
    path.parent.mkdir(parents=True)
    path.write_text("max\n")
    assert memory_limit(tmp_path) > 1_000
    path.write_text("1000\n")
    assert memory_limit(tmp_path) == 1_000
