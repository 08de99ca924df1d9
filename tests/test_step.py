import functools

import jax
import jax.numpy as jnp
import numpy as np

from shakegpt_jax.data.windows import gather_windows, sample_starts, split_windows
from shakegpt_jax.model.gpt import GPT
from shakegpt_jax.training.optimizer import make_optimizer, make_schedule
from shakegpt_jax.training.step import create_state, random_key, train_step


def test_golden_values_of_one_step(config, corpus):
    """Numbers that a refactoring must not change.

    A change that means to alter them (other initial parameters, another random stream, another
    optimizer) updates them and says so.
    """
    model = GPT(config.model, corpus.tokenizer.vocab_size)
    tx = make_optimizer(config.optimizer, config.train.num_steps)
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    state = jax.jit(functools.partial(create_state, model, tx))(0)
    assert state.step == 0
    ids = jnp.asarray(corpus.train_ids)
    starts = sample_starts(random_key(0, "windows", 0), len(ids), 8, 8)
    batch = split_windows(gather_windows(ids, starts, 8))
    step = jax.jit(functools.partial(train_step, model=model, tx=tx, schedule=schedule))
    state, metrics = step(state, batch, random_key(0, "dropout", 0))
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


def test_every_seed_purpose_and_step_has_its_own_key():
    keys = {
        tuple(jax.random.key_data(random_key(seed, stream, step)).tolist())
        for seed in (0, 1)
        for stream in ("params", "windows", "dropout")
        for step in (0, 1)
    }
    assert len(keys) == 12
