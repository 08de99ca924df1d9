import functools

import jax
import jax.numpy as jnp
import numpy as np

from shakegpt_jax.data.windows import sample_windows
from shakegpt_jax.model.gpt import GPT
from shakegpt_jax.training.optimizer import make_optimizer, make_schedule
from shakegpt_jax.training.step import create_state, random_key, train_step


def make_step(config, corpus):
    model = GPT(config.model, corpus.tokenizer.vocab_size)
    tx = make_optimizer(config.optimizer, config.train.num_steps)
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    state = jax.jit(functools.partial(create_state, model, tx))(0)

    step = functools.partial(train_step, model=model, tx=tx, schedule=schedule)
    return state, jax.jit(step)


def windows(corpus, step: int, seed: int = 0):
    return sample_windows(random_key(seed, "windows", step), jnp.asarray(corpus.train_ids), 8, 8)


def test_golden_values_of_one_step(config, corpus):
    """Numbers that a refactoring must not change.

    A change that means to alter them (other initial parameters, another random stream, another
    optimizer) updates them and says so.
    """
    state, take_step = make_step(config, corpus)
    assert state.step == 0
    state, metrics = take_step(state, windows(corpus, 0), random_key(0, "dropout", 0))
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


def test_every_step_and_seed_has_its_own_windows_and_dropout(config, corpus):
    config.model.dropout = 0.5
    state, take_step = make_step(config, corpus)
    batch = windows(corpus, 0)
    places = [(0, 0), (0, 0), (1, 0), (0, 1)]  # step and seed
    losses = [
        float(take_step(state, batch, random_key(seed, "dropout", step))[1]["loss"])
        for step, seed in places
    ]
    drawn = [windows(corpus, step, seed)[0].tolist() for step, seed in places]
    for first, again, next_step, next_seed in (losses, drawn):
        assert first == again
        assert first != next_step != next_seed != first
    keys = [random_key(0, stream, 0) for stream in ("params", "windows", "dropout")]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 3
