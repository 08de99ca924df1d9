import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.writer import CheckpointWriter
from shakegpt_jax.data.windows import gather_windows, sample_starts, shuffled_starts, split_windows
from shakegpt_jax.errors import UserError
from shakegpt_jax.sharding import make_mesh, shard_batch
from shakegpt_jax.training.optimizer import make_optimizer, make_schedule
from shakegpt_jax.training.step import create_state, random_key, train_step
from shakegpt_jax.training.trainer import Trainer, chunk_lengths


def run(config, corpus, until: int) -> tuple[Trainer, list]:
    trainer = Trainer(config.freeze(), corpus, make_mesh(config))
    trainer.initialize()
    return trainer, list(trainer.run(0, until))


def test_overfits_one_batch(config, corpus):
    config.model.n_embd = 64
    config.optimizer.learning_rate = 1e-2
    config.train.num_steps = config.train.eval_every = 100
    config.train.steps_per_dispatch = 25
    # A text of one window and its target makes every batch the same.
    config.data.batch_size = 1
    one = dataclasses.replace(corpus, train_ids=corpus.train_ids[: config.model.block_size + 1])
    _, metrics = run(config, one, 100)
    assert metrics[0].train_loss > 0.5
    assert metrics[-1].train_loss < 0.01


def test_learns_real_text_and_reports_metrics(config, corpus):
    config.optimizer.learning_rate = 1e-2
    config.train.num_steps = config.train.eval_every = 300
    config.train.steps_per_dispatch = 100
    trainer, metrics = run(config, corpus, 300)
    assert [each.step for each in metrics] == [100, 200, 300]
    guess = np.log(corpus.tokenizer.vocab_size)
    assert metrics[-1].train_loss < 0.75 * guess
    assert trainer.evaluate().loss < 0.75 * guess
    rates = [each.learning_rate for each in metrics]
    assert rates == sorted(rates, reverse=True)
    assert all(each.gradient_norm > 0 and each.train_time > 0 for each in metrics)
    speed = 100 * 8 * 8 / metrics[0].train_time
    assert metrics[0].characters_per_second == pytest.approx(speed)


def test_chunk_lengths():
    assert chunk_lengths(200, 50) == [50] * 4
    assert chunk_lengths(251, 50) == [50] * 5 + [1]
    assert chunk_lengths(7, 50) == [7]
    assert chunk_lengths(0, 50) == []


def test_chunk_length_does_not_change_the_result(config, corpus):
    """Up to rounding: XLA compiles two programs."""
    states = []
    for longest in (2, 3):
        config = config.replace({"train.steps_per_dispatch": longest})
        states.append(run(config, corpus, 6)[0].state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *states)


@pytest.mark.parametrize("replacement", [True, False])
def test_draws_windows_and_dropout_by_seed_and_step(config, corpus, replacement):
    config.data.replacement = replacement
    config.model.dropout = 0.5
    config.train.seed = 1
    trainer, (metrics,) = run(config, corpus, 3)

    model, n = trainer.model, config.train.num_steps
    tx, schedule = make_optimizer(config.optimizer, n), make_schedule(config.optimizer, n)
    take_step = jax.jit(functools.partial(train_step, model=model, tx=tx, schedule=schedule))
    state = jax.jit(functools.partial(create_state, model, tx))(1)
    norms, ids = [], jnp.asarray(corpus.train_ids)
    for step in range(3):
        if replacement:
            starts = sample_starts(random_key(1, "windows", step), len(ids), 8, 8)
        else:
            starts = shuffled_starts(random_key(1, "windows", 0), step, len(ids), 8, 8)
        before, batch = state, split_windows(gather_windows(ids, starts, 8))
        state, expected = take_step(state, batch, random_key(1, "dropout", step))
        norms.append(expected["gradient_norm"])
    assert metrics.gradient_norm == pytest.approx(np.mean(norms), rel=1e-4)
    for ours, theirs in zip(*map(jax.tree.leaves, (trainer.state, state)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)
    _, other = take_step(before, batch, random_key(1, "dropout", 9))
    assert other["loss"] != expected["loss"]


def test_starts_at_a_step_between_evaluations(config, corpus):
    # As after a signal, with another steps_per_dispatch than before.
    trainer = Trainer(config.freeze(), corpus, make_mesh(config))
    trainer.initialize()
    assert [each.step for each in trainer.run(4, 6)] == [6]


def test_reading_metrics_late_does_not_change_them(config, corpus, monkeypatch):
    config.model.compute_dtype = "float32"  # for both, whatever the backend is called
    _, expected = run(config, corpus, 6)
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    _, metrics = run(config, corpus, 6)
    figures = ("step", "train_loss", "gradient_norm", "learning_rate")
    assert [[getattr(m, f) for f in figures] for m in metrics] == [
        [getattr(m, f) for f in figures] for m in expected
    ]


def test_nothing_compiles_in_the_loop(config, corpus):
    trainer, _ = run(config, corpus, 3)
    trainer.evaluate()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )
    list(trainer.run(3, 6))
    trainer.evaluate()
    list(trainer.run(6, 12))
    assert not compiled
    jax.jit(lambda x: x * 3.14)(1.0)  # what the listener would have recorded
    assert compiled
    jax.monitoring.clear_event_listeners()


@pytest.mark.slow
def test_four_devices_train_as_one(config, corpus, tmp_path):
    config.model.dropout = 0.5
    many = config.replace({"mesh.data": 2, "mesh.fsdp": 2})
    single, expected = run(config, corpus, 6)
    trainer, metrics = run(many, corpus, 6)
    for name in ("train_loss", "gradient_norm"):
        np.testing.assert_allclose(
            [getattr(m, name) for m in metrics], [getattr(m, name) for m in expected], rtol=1e-4
        )
    kernel = trainer.state.params["block_0"]["attn"]["c_attn"]["kernel"]
    moment = optax.tree.get(trainer.state.opt_state, "mu")["block_0"]["attn"]["c_attn"]["kernel"]
    assert len(kernel.sharding.device_set) == 4
    for array in (kernel, moment):
        assert array.addressable_shards[0].data.shape == (8, 48)

    # A checkpoint of four devices restores onto one.
    with CheckpointWriter(tmp_path / "run", 1) as checkpoints:
        trainer.save(checkpoints, 6, {"loss": 1.0})
    single.restore(CheckpointReader(tmp_path / "run"), 6)
    assert jax.tree.all(jax.tree.map(np.array_equal, single.state, trainer.state))
    assert {len(a.sharding.device_set) for a in jax.tree.leaves(single.state)} == {1}
    assert single.evaluate().loss == pytest.approx(trainer.evaluate().loss, rel=1e-5)
    assert len(trainer.sample("First", 20)) == 25


@pytest.mark.parametrize(
    ("data", "fsdp", "message"),
    [
        (9, 1, "data 9 x fsdp 1 x tensor 1 devices and there are 8"),
        (3, 1, "must be a multiple of 3, the product of mesh.data, mesh.fsdp and"),
        (-1, 3, "fsdp 3 x tensor 1 devices and there are 8; the product must be 8"),
    ],
)
def test_refuses_a_mesh_that_does_not_fit(config, data, fsdp, message):
    config.mesh.data, config.mesh.fsdp = data, fsdp
    with pytest.raises(UserError, match=message):
        make_mesh(config)


def test_shards_batches_over_the_mesh(config):
    config.mesh.data, config.mesh.fsdp = 2, 4
    with jax.set_mesh(make_mesh(config)):
        sharded = jax.jit(shard_batch)(jnp.zeros((16, 3)))
        odd = jax.jit(shard_batch)(jnp.zeros((9, 3)))
    assert {shard.data.shape for shard in sharded.addressable_shards} == {(2, 3)}
    assert odd.shape == (9, 3)
