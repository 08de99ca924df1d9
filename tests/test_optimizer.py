import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shakegpt_jax.config import Config, OptimizerConfig
from shakegpt_jax.errors import UserError
from shakegpt_jax.training.optimizer import make_optimizer, make_schedule


@pytest.mark.parametrize(("decay", "at_quarter"), [("cosine", 8.68198e-4), ("linear", 7.75e-4)])
def test_schedule_at_its_corners(decay, at_quarter):
    config = OptimizerConfig(
        learning_rate=1e-3, final_learning_rate=1e-4, warmup_steps=100, decay=decay
    )
    schedule = make_schedule(config, 1_000)
    assert schedule(0) == pytest.approx(1e-3 / 101, rel=1e-5)
    assert schedule(50) == pytest.approx((1e-3 / 101 + 1e-3) / 2, rel=1e-5)
    assert schedule(100) == pytest.approx(1e-3)
    assert schedule(325) == pytest.approx(at_quarter)  # 1e-4 + 9e-4 (1 + cos(pi / 4)) / 2
    assert schedule(550) == pytest.approx(5.5e-4)
    assert schedule(1_000) == pytest.approx(1e-4)
    rates = [float(schedule(step)) for step in range(1_001)]
    assert np.all(np.diff(rates[:101]) > 0)
    assert np.all(np.diff(rates[100:]) < 0)


@pytest.mark.parametrize("decay", ["cosine", "linear"])
@pytest.mark.parametrize(("warmup_steps", "num_steps"), [(0, 10), (0, 1), (100, 10), (5, 2)])
def test_schedule_fits_any_length_of_run(warmup_steps, num_steps, decay):
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=warmup_steps, decay=decay)
    rates = [float(make_schedule(config, num_steps)(step)) for step in range(num_steps)]
    assert max(rates) == 1.0
    assert min(rates) > 0


@pytest.mark.parametrize("nesterov", [False, True])
def test_updates_equal_clipped_adam_with_decoupled_decay_in_numpy(nesterov):
    config = OptimizerConfig(
        learning_rate=0.1,
        warmup_steps=0,
        b1=0.8,
        b2=0.9,
        nesterov=nesterov,
        clip_norm=1.0,
        weight_decay=0.5,
    )
    tx = make_optimizer(config, 4)
    rng = np.random.default_rng(0)
    params = {"matrix": rng.normal(size=(3, 2)), "vector": rng.normal(size=3)}
    state = tx.init({k: jnp.asarray(v, jnp.float32) for k, v in params.items()})
    mean = {k: np.zeros_like(v) for k, v in params.items()}
    square = {k: np.zeros_like(v) for k, v in params.items()}
    for step in range(4):
        # The first gradient is shorter than the clipping norm, the others are longer.
        grads = {k: rng.normal(size=v.shape) * 0.1 * 10**step for k, v in params.items()}
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        assert (norm < 1) == (step == 0)
        to_float32 = {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}
        updates, state = tx.update(
            {k: jnp.asarray(g, jnp.float32) for k, g in grads.items()}, state, to_float32
        )
        rate = 0.1 * (1 + np.cos(np.pi * step / 4)) / 2
        for k, g in grads.items():
            clipped = g / max(1.0, norm)
            mean[k] = 0.8 * mean[k] + 0.2 * clipped
            square[k] = 0.9 * square[k] + 0.1 * clipped**2
            adam = mean[k] / (1 - 0.8 ** (step + 1))
            if nesterov:  # with the momentum of the next step
                adam = 0.8 * mean[k] / (1 - 0.8 ** (step + 2))
                adam += 0.2 * clipped / (1 - 0.8 ** (step + 1))
            adam /= np.sqrt(square[k] / (1 - 0.9 ** (step + 1))) + 1e-8
            decay = 0.5 * params[k] if k == "matrix" else 0.0
            np.testing.assert_allclose(updates[k], -rate * (adam + decay), rtol=1e-4)
            params[k] = params[k] + np.asarray(updates[k], np.float64)


def test_muon_orthogonalizes_the_matrices_of_the_blocks_and_adam_updates_the_rest():
    config = OptimizerConfig(
        name="muon",
        learning_rate=0.1,
        warmup_steps=0,
        clip_norm=1e9,
        weight_decay=0.5,
        adam_weight_decay=0.3,
    )
    rng = np.random.default_rng(0)
    block = {"kernel": rng.normal(size=(8, 24)), "bias": rng.normal(size=24)}
    params = {"block_0": block, "wte": {"embedding": rng.normal(size=(5, 8))}}
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    tx = make_optimizer(config, 100)
    updates, _ = tx.update(grads, tx.init(params), params)
    # The first step of Adam, with Nesterov momentum, has the same size for every parameter.
    for part, name in (("wte", "embedding"), ("block_0", "bias")):
        update = updates[part][name] + 0.1 * 0.3 * params[part][name]
        grad = grads[part][name]
        np.testing.assert_allclose(update / -np.sign(grad), np.abs(update).mean(), rtol=1e-3)
    orthogonal = updates["block_0"]["kernel"] / -0.1 - 0.5 * params["block_0"]["kernel"]
    # If the gradient is U S V, the update is about U V times 0.2 sqrt(24).
    u, _, v = np.linalg.svd(grads["block_0"]["kernel"], full_matrices=False)
    inner = np.diag(u.T @ orthogonal @ v.T) / (0.2 * np.sqrt(24))
    assert np.all((inner > 0.6) & (inner < 1.4)), inner
    assert np.linalg.norm(orthogonal) == pytest.approx(
        np.linalg.norm(u.T @ orthogonal @ v.T), rel=1e-3
    )  # nothing outside their span


OTHER_VALUES = {
    "learning_rate": 0.5,
    "final_learning_rate": 1e-4,
    "warmup_steps": 1,
    "decay": "linear",
    "b1": 0.5,
    "b2": 0.5,
    "nesterov": True,
    "eps": 0.1,
    "clip_norm": 0.01,
    "weight_decay": 0.1,
    "adam_weight_decay": 0.1,
    "max_skipped_updates": 1,
}


def some_updates(config: OptimizerConfig) -> np.ndarray:
    """Return what an optimizer does in five steps, the last of which has gradients of NaN."""
    rng = np.random.default_rng(0)
    shapes = {"block_0": {"kernel": (4, 3), "bias": (3,)}, "wte": {"embedding": (5, 4)}}
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params = jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))
    tx, found = make_optimizer(config, 5), []
    state = tx.init(params)
    for factor in (1, 1, 1, 1, np.nan):
        grads = jax.tree.map(lambda p: factor * draw(p.shape), params)  # noqa: B023
        updates, state = tx.update(grads, state, params)
        found += [np.ravel(update) for update in jax.tree.leaves(updates)]
    return np.concatenate(found)


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_every_setting_is_used_or_refused(name):
    default = OptimizerConfig(name=name)
    before = some_updates(default)
    assert {field.name for field in dataclasses.fields(default)} == {"name", *OTHER_VALUES}
    refused = set()
    for field, value in OTHER_VALUES.items():
        changed = dataclasses.replace(default, **{field: value})
        try:
            Config(optimizer=changed).freeze()
        except UserError as error:
            assert f"config.optimizer.{field} is {value}; it must be" in str(error)
            refused.add(field)
        else:
            assert not np.array_equal(some_updates(changed), before, equal_nan=True), field
    assert refused == ({"adam_weight_decay"} if name == "adam" else {"nesterov"})
