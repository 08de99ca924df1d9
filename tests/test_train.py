import contextlib
import dataclasses
import functools
import json
import math
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fakes import SmallFiles

from shakegpt_jax import load, sharding
from shakegpt_jax.checkpoint import Checkpoints, CheckpointWriter
from shakegpt_jax.data import CharTokenizer, Corpus, load_corpus, sample_windows
from shakegpt_jax.errors import DivergedError, StoppedBySignalError, UserError
from shakegpt_jax.guard import only_one
from shakegpt_jax.metrics import MetricsFile
from shakegpt_jax.model import GPT
from shakegpt_jax.optimizer import make_optimizer, make_schedule
from shakegpt_jax.train import SAMPLE_PROMPT, _sample_prompt, train
from shakegpt_jax.train_step import _key, create_state, train_step
from shakegpt_jax.trainer import Trainer, chunk_lengths


def run(config, corpus, until: int) -> tuple[Trainer, list[dict]]:
    trainer = Trainer(config.freeze(), corpus, sharding.make_mesh(config))
    trainer.initialize()
    return trainer, list(trainer.run(0, until))


def equal(a, b) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_one_step_changes_what_it_did_before(config, corpus):
    """Golden values of one step.

    They hold a refactoring to its word. A change that means to alter the numbers (other
    first parameters, another random stream, another optimizer) updates them, and says so.
    """
    model = GPT(config.model, corpus.tokenizer.vocab_size)
    tx = make_optimizer(config.optimizer, config.train.num_steps)
    state = jax.jit(functools.partial(create_state, model, tx, 0))()
    assert state.step == 0
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    step = jax.jit(
        functools.partial(train_step, model=model, tx=tx, schedule=schedule, batch_size=8, seed=0)
    )
    state, metrics = step(state, corpus.train_ids)
    assert state.step == 1
    updated = np.concatenate([np.ravel(p) for p in jax.tree.leaves(state.params)])
    figures = {
        "loss": metrics["loss"],
        "gradient_norm": metrics["gradient_norm"],
        "sum": updated.sum(),
        "norm": np.linalg.norm(updated),
    }
    golden = {"loss": 4.041602, "gradient_norm": 1.291404, "sum": 49.534386, "norm": 7.055521}
    np.testing.assert_allclose(list(figures.values()), list(golden.values()), rtol=1e-4)


def test_one_batch_can_be_learned_by_heart(config, corpus):
    config.model.n_embd = 64
    config.optimizer.learning_rate = 1e-2
    config.train.num_steps = 200
    config.train.eval_every = 200
    # A text of one window and its target, so that every batch is the same.
    config.data.batch_size = 1
    one = dataclasses.replace(corpus, train_ids=corpus.train_ids[: config.model.block_size + 1])
    _, rows = run(config, one, 200)
    assert rows[0]["train_loss"] > 1
    assert rows[-1]["train_loss"] < 0.01


def test_real_text_is_learned(config, corpus):
    config.optimizer.learning_rate = 1e-2
    config.train.num_steps = config.train.eval_every = 300
    trainer, rows = run(config, corpus, 300)
    guess = np.log(corpus.tokenizer.vocab_size)
    assert rows[-1]["train_loss"] < 0.75 * guess
    assert trainer.evaluate().loss < 0.75 * guess


def test_rows_hold_what_happened(config, corpus):
    config.train.eval_every = 12
    _, rows = run(config, corpus, 12)
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert all(row["gradient_norm"] > 0 and row["seconds"] > 0 for row in rows)
    rates = [row["learning_rate"] for row in rows]
    assert rates[0] == pytest.approx(config.optimizer.learning_rate)
    assert rates == sorted(rates, reverse=True)
    speed = 3 * 8 * 8 / rows[0]["seconds"]
    assert rows[0]["characters_per_second"] == pytest.approx(speed)


def test_any_number_of_steps_is_cut_into_chunks():
    assert chunk_lengths(200, 50) == [50] * 4
    assert chunk_lengths(251, 50) == [50] * 5 + [1]
    assert chunk_lengths(7, 50) == [7]
    assert chunk_lengths(0, 50) == []


@pytest.mark.parametrize(
    ("num_steps", "eval_every", "most", "steps", "evaluated"),
    [
        (12, 6, 3, [3, 6, 9, 12], [6, 12]),
        (7, 250, 50, [7], [7]),
        (11, 4, 3, [3, 4, 7, 8, 11], [4, 8, 11]),
    ],
)
def test_chunks_end_at_every_evaluation(
    config, tmp_path, text, num_steps, eval_every, most, steps, evaluated
):
    (tmp_path / "text.txt").write_text(text)
    config.data.path = str(tmp_path / "text.txt")
    config.train.num_steps, config.train.eval_every = num_steps, eval_every
    config.train.steps_per_dispatch = most
    train(config.freeze(), tmp_path / "run")
    rows = MetricsFile.read(tmp_path / "run")
    assert [row["step"] for row in rows] == steps
    assert [row["step"] for row in rows if "val_loss" in row] == evaluated


def test_a_run_goes_on_from_anywhere_with_other_dispatches(config, corpus):
    # As after a signal, and another steps_per_dispatch than the run was started with.
    config.train.steps_per_dispatch = 4
    trainer = Trainer(config.freeze(), corpus, sharding.make_mesh(config))
    trainer.initialize()
    assert [row["step"] for row in trainer.run(3, 6)] == [6]


def test_windows_and_dropout_are_drawn_anew_at_every_step_and_seed(config, corpus):
    config.model.dropout = 0.5
    model = GPT(config.model, corpus.tokenizer.vocab_size)
    tx = make_optimizer(config.optimizer, config.train.num_steps)
    state = jax.jit(functools.partial(create_state, model, tx, 0))()
    one_window = corpus.train_ids[:9]  # of it only the dropout can differ

    @functools.partial(jax.jit, static_argnames="seed")
    def losses(step, seed: int) -> list[jax.Array]:
        take = functools.partial(
            train_step,
            model=model,
            tx=tx,
            schedule=optax.constant_schedule(1.0),
            batch_size=4,
            seed=seed,
        )
        at_step = state.replace(step=step)
        return [take(at_step, ids)[1]["loss"] for ids in (corpus.train_ids, one_window)]

    first, again, next_step, next_seed = losses(0, 0), losses(0, 0), losses(1, 0), losses(0, 1)
    assert first == again
    for three in zip(first, next_step, next_seed, strict=True):
        assert len(set(map(float, three))) == 3


def test_chunks_of_any_length_end_alike(config, corpus):
    states = []
    for most in (1, 6):
        config = config.replace({"train.steps_per_dispatch": most})
        states.append(run(config, corpus, 6)[0].state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *states)


def test_reading_behind_the_device_changes_no_figure(config, corpus, monkeypatch):
    config.model.compute_dtype = "float32"  # of both, whatever the backend is called
    _, expected = run(config, corpus, 6)
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    _, rows = run(config, corpus, 6)
    figures = ("step", "train_loss", "gradient_norm", "learning_rate")
    assert [[r[f] for f in figures] for r in rows] == [[r[f] for f in figures] for r in expected]


def test_nothing_compiles_in_the_loop(config, corpus):
    config.train.num_steps = 30
    trainer, _ = run(config, corpus, 6)
    trainer.evaluate()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )
    list(trainer.run(6, 18))
    trainer.evaluate()
    list(trainer.run(18, 30))
    assert not compiled
    jax.jit(lambda x: x * 3.14)(1.0)  # what the listener would have heard
    assert compiled
    jax.monitoring.clear_event_listeners()


def test_train_writes_metrics_and_checkpoints(config, corpus, tmp_path, text, capsys):
    path = tmp_path / "text.txt"
    path.write_text(text)
    config.data.path = str(path)
    config.train.sample_length = 30
    train(config.freeze(), tmp_path / "run")
    rows = MetricsFile.read(tmp_path / "run")
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert [row["step"] for row in rows if "val_loss" in row] == [6, 12]
    times = [row["train_time"] for row in rows]
    assert times == sorted(times)
    assert all(row["wall_time"] > row["train_time"] for row in rows)
    last = rows[-1]
    assert last["val_count"] == 1_999
    assert last["val_perplexity"] == pytest.approx(np.exp(last["val_loss"]))
    assert last["val_bits_per_character"] == pytest.approx(last["val_loss"] / np.log(2))
    assert Checkpoints(tmp_path / "run").find("latest") == 12
    out = capsys.readouterr().out
    assert f"validation loss {last['val_loss']:.4f}" in out
    assert "O God, O God!" in out
    assert "python -m shakegpt_jax.generate --workdir" in out

    train(config, tmp_path / "run")
    assert "is finished, at step 12 of 12" in capsys.readouterr().out
    assert MetricsFile.read(tmp_path / "run") == rows


def test_the_sample_has_a_prompt_that_the_vocabulary_can_spell(corpus):
    assert _sample_prompt(corpus) == SAMPLE_PROMPT
    tokenizer = CharTokenizer("\n abc")
    ids = tokenizer.encode("\n\nabc cba")
    assert _sample_prompt(Corpus(tokenizer, ids, ids, "")) == "abc"
    assert _sample_prompt(Corpus(tokenizer, ids[:2], ids[:2], "")) == "\n"


class Stopped(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("how", ["exception", "SIGTERM", "SIGINT"])
def test_continuing_equals_not_having_stopped(config, tmp_path, text, monkeypatch, how):
    path = tmp_path / "text.txt"
    path.write_text(text)
    config.data.path = str(path)
    config.model.dropout = 0.1
    config.freeze()
    train(config, tmp_path / "whole")

    run_whole = Trainer.run

    def run_to_9(self, step, until, stop):
        for row in run_whole(self, step, until, stop):
            yield row
            if row["step"] == 9:
                if how == "exception":
                    raise Stopped
                os.kill(os.getpid(), signal.Signals[how])

    monkeypatch.setattr(Trainer, "run", run_to_9)
    with pytest.raises(Stopped if how == "exception" else StoppedBySignalError) as ended:
        train(config, tmp_path / "stopped")
    checkpoints = Checkpoints(tmp_path / "stopped")
    assert checkpoints.find("latest") == (6 if how == "exception" else 9)
    assert checkpoints.find("best") == 6
    if how != "exception":
        assert ended.value.exit_code == {"SIGTERM": 143, "SIGINT": 130}[how]
        assert "saved at step 9; the same command goes on" in str(ended.value)
    assert [row["step"] for row in MetricsFile.read(tmp_path / "stopped")] == [3, 6, 9]
    monkeypatch.setattr(Trainer, "run", run_whole)
    train(config, tmp_path / "stopped")

    def reproducible(workdir):
        drop = ("train_time", "wall_time", "characters_per_second")
        rows = MetricsFile.read(workdir)
        return [{k: v for k, v in row.items() if k not in drop} for row in rows]

    assert reproducible(tmp_path / "stopped") == reproducible(tmp_path / "whole")
    states = []
    for name in ("stopped", "whole"):
        trainer = Trainer(config, load_corpus(str(path), 8), sharding.make_mesh(config))
        trainer.restore(Checkpoints(tmp_path / name), 12)
        states.append(trainer.state)
    assert states[0].step == 12
    assert equal(*states)


def test_numbers_that_are_not_finite_end_the_run_and_save_nothing(config, tmp_path, text):
    (tmp_path / "text.txt").write_text(text)
    config.data.path = str(tmp_path / "text.txt")
    config.optimizer.learning_rate = 1e30
    with pytest.raises(DivergedError, match="in steps 1 to 3; there is no earlier checkpoint"):
        train(config.freeze(), tmp_path / "run")
    assert MetricsFile.read(tmp_path / "run") == []
    assert Checkpoints(tmp_path / "run").steps == []


@pytest.mark.parametrize("learning_rate", [10.0, 1e3, 1e5])
def test_a_loss_beyond_reason_ends_the_run(config, tmp_path, text, learning_rate):
    (tmp_path / "text.txt").write_text(text)
    config.data.path = str(tmp_path / "text.txt")
    config.optimizer.learning_rate = learning_rate
    config.train.num_steps = 40
    with contextlib.suppress(DivergedError):
        train(config.freeze(), tmp_path / "run")
    for step in Checkpoints(tmp_path / "run").steps:
        assert math.isfinite(Checkpoints(tmp_path / "run").metrics(step)["perplexity"])


def test_a_signal_before_the_first_step_ends_the_run_in_order(config, tmp_path, text, monkeypatch):
    (tmp_path / "text.txt").write_text(text)
    config.data.path = str(tmp_path / "text.txt")
    init = Trainer.__init__

    def init_and_stop(self, *args):
        init(self, *args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "__init__", init_and_stop)
    with pytest.raises(StoppedBySignalError, match="before the first steps; the same command") as e:
        train(config.freeze(), tmp_path / "run")
    assert e.value.exit_code == 143
    assert Checkpoints(tmp_path / "run").steps == []


class PoisonedGPT(GPT):
    """Has no finite loss for windows with a certain character in them."""

    def __call__(self, idx_BxT, *, train=False):
        poison = jnp.where(train & (idx_BxT == self.vocab_size - 1).any(), jnp.nan, 0.0)
        return super().__call__(idx_BxT, train=train) + poison


def test_updates_that_are_not_finite_can_be_skipped(config, tmp_path, text, monkeypatch):
    monkeypatch.setattr("shakegpt_jax.trainer.GPT", PoisonedGPT)
    pieces = [text[i : i + 150] for i in range(0, 18_000, 150)]
    (tmp_path / "text.txt").write_text("~".join(pieces) + text[18_000:])
    config.data.path = str(tmp_path / "text.txt")
    config.train.num_steps, config.train.eval_every = 24, 12
    ids = jnp.asarray(load_corpus(config.data.path, 8).train_ids)
    windows = [sample_windows(_key(0, "windows", step), ids, 8, 8)[0] for step in range(24)]
    poisoned = [bool((window == ids.max()).any()) for window in windows]
    longest = max(len(run) for run in "".join("01"[p] for p in poisoned).split("0"))
    assert longest >= 2 and not all(poisoned)

    def attempt(most: int) -> list[dict]:
        config.optimizer.max_skipped_updates = most
        train(config.replace({}), tmp_path / str(most))
        return MetricsFile.read(tmp_path / str(most))

    first = poisoned.index(True)
    chunk = f"in steps {first // 3 * 3 + 1} to {first // 3 * 3 + 3}; there is no"
    with pytest.raises(DivergedError, match=chunk):
        attempt(0)
    with pytest.raises(DivergedError):
        attempt(longest - 1)
    rows = attempt(longest)
    skipped = [sum(poisoned[i : i + 3]) for i in range(0, 24, 3)]
    assert [row.get("skipped_updates", 0) for row in rows] == skipped
    schedule = make_schedule(config.optimizer, 24)  # stands still where updates are skipped
    applied = [i - sum(poisoned[:i]) for i in range(2, 24, 3)]
    rates = [row["learning_rate"] for row in rows]
    np.testing.assert_allclose(rates, [schedule(count) for count in applied], rtol=1e-5)
    for row, n in zip(rows, skipped, strict=True):
        assert (row["train_loss"] is None) == (n == 3)
        assert n == 3 or math.isfinite(row["train_loss"] + row["gradient_norm"])
    params = load(tmp_path / str(longest)).params
    assert all(jnp.isfinite(p).all() for p in jax.tree.leaves(params))


def test_one_folder_is_for_one_process(config, tmp_path, text):
    (tmp_path / "text.txt").write_text(text)
    config.data.path = str(tmp_path / "text.txt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").write_text("99999")  # of a process that is gone
    with (
        only_one(tmp_path / "run"),
        pytest.raises(UserError, match=f"is being trained in by process {os.getpid()};"),
    ):
        train(config.freeze(), tmp_path / "run")
    train(config, tmp_path / "run")


def test_another_run_in_the_folder_is_refused_naming_the_difference(config, tmp_path, text):
    path = tmp_path / "text.txt"
    path.write_text(text)
    config.data.path = str(path)
    train(config.freeze(), tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    other = config.replace({"train.seed": 5})
    with pytest.raises(UserError, match=r"train.seed \(saved 0, now 5\)") as error:
        train(other, tmp_path / "run")
    assert "n_layer" not in str(error.value)
    path.write_text(text + "O")
    with pytest.raises(UserError, match="what differs: the text"):
        train(config, tmp_path / "run")
    path.write_text(text)
    free = config.replace({"train.sample_length": 9})
    train(free, tmp_path / "run")  # what shows only is free to change
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_metrics_after_the_checkpoint_and_a_torn_line_are_dropped(tmp_path):
    rows = [{"step": step, "train_time": 1.5 * step, "wall_time": 2.0 * step} for step in (3, 6, 9)]
    lines = list(map(json.dumps, rows))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 12, "tra')
    assert [row["step"] for row in MetricsFile.read(tmp_path)] == [3, 6, 9]
    log = MetricsFile(tmp_path, 6, time.perf_counter() - 100)
    log.append({"step": 9, "seconds": 0.5})
    log.flush()
    *kept, new = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert kept == lines[:2]
    assert json.loads(new) == {
        "step": 9,
        "train_time": 9.5,
        "wall_time": pytest.approx(112, abs=10),
    }


def test_the_time_to_an_evaluation_outlives_the_file_but_is_not_made_up(tmp_path):
    rows = [
        {"step": step, "train_time": step / 2, "wall_time": step, "val_loss": 2.0}
        for step in (10, 20)
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = MetricsFile(tmp_path, 20, time.perf_counter())
    path.write_text("")
    for step, val_loss in ((25, {}), (30, {"val_loss": 1.5})):
        log.append({"step": step, "seconds": 2.0, **val_loss})
        log.flush()
    assert log.time_to == {10: 5.0, 20: 10.0, 30: 14.0}
    assert log.last["train_time"] == 14.0

    path.unlink()
    log = MetricsFile(tmp_path, 30, time.perf_counter())
    log.append({"step": 40, "seconds": 2.0, "val_loss": 1.4})
    assert (log.time_to, log.last) == ({}, None)


@pytest.mark.parametrize("line", ["{", "[]", '{"step": 3}', '{"step": "3"}', "\xff"])
def test_metrics_that_no_run_wrote_are_refused(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(line.encode("latin-1") + b"\n")
    with pytest.raises(UserError, match=r"metrics.jsonl, line 1 is not a row of metrics"):
        MetricsFile(tmp_path, 6, 0.0)


def test_metrics_that_could_not_be_written_are_written_later(tmp_path):
    log = MetricsFile(tmp_path, 0, 0.0)
    with SmallFiles():
        log.append({"step": 1, "seconds": 1.0})
        with pytest.raises(OSError):
            log.flush()
    assert len((tmp_path / "metrics.jsonl").read_bytes()) == 20
    log.append({"step": 2, "seconds": 1.0})
    log.flush()
    assert [row["step"] for row in MetricsFile.read(tmp_path)] == [1, 2]


def test_eight_devices_train_as_one(config, corpus, tmp_path):
    config.train.num_steps, config.train.eval_every = 20, 20
    config.train.steps_per_dispatch = 1
    config.model.dropout = 0.1
    many = config.replace({"mesh.data": 2, "mesh.fsdp": 4})
    _, expected = run(config, corpus, 20)
    trainer, rows = run(many, corpus, 20)
    for name in ("train_loss", "gradient_norm"):
        np.testing.assert_allclose(
            [row[name] for row in rows], [row[name] for row in expected], rtol=1e-4
        )
    kernel = trainer.state.params["block_0"]["attn"]["c_attn"]["kernel"]
    moment = optax.tree.get(trainer.state.opt_state, "mu")["block_0"]["attn"]["c_attn"]["kernel"]
    assert len(kernel.sharding.device_set) == 8
    for array in (kernel, moment):
        assert array.addressable_shards[0].data.shape == (16, 12)

    with CheckpointWriter(tmp_path / "run", 1, pytest.fail) as checkpoints:
        trainer.save(checkpoints, 20, {"loss": 1.0})
    single = Trainer(config, corpus, sharding.make_mesh(config))
    single.restore(Checkpoints(tmp_path / "run"), 20)
    assert equal(single.state, trainer.state)
    assert {len(a.sharding.device_set) for a in jax.tree.leaves(single.state)} == {1}
    assert single.evaluate().loss == pytest.approx(trainer.evaluate().loss, rel=1e-5)
    assert len(trainer.sample("First", 20)) == 25


@pytest.mark.parametrize(
    ("data", "fsdp", "message"),
    [
        (9, 1, "9 x 1 devices and there are 8"),
        (3, 1, "must be a multiple of the 3 devices"),
        (-1, 3, "must divide the 8 devices"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(config, data, fsdp, message):
    config.mesh.data, config.mesh.fsdp = data, fsdp
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(config)


def test_batches_are_split_over_the_mesh(config):
    config.mesh.data, config.mesh.fsdp = 2, 4
    with jax.set_mesh(sharding.make_mesh(config)):
        split = jax.jit(sharding.split_batch)(jnp.zeros((16, 3)))
        odd = jax.jit(sharding.split_batch)(jnp.zeros((9, 3)))
    assert {shard.data.shape for shard in split.addressable_shards} == {(2, 3)}
    assert odd.shape == (9, 3)
