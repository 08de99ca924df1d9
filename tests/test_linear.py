"""Products in bfloat16 into float32, whether or not this CPU has matrix units."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shakegpt_jax.config import ModelConfig
from shakegpt_jax.inference.decoding import for_decoding
from shakegpt_jax.inference.sampler import generate_ids
from shakegpt_jax.inference.sampling import Sampling
from shakegpt_jax.model import linear
from shakegpt_jax.model.gpt import GPT, init_params
from shakegpt_jax.model.linear import Linear, cast_blocks, compute_dtype, operand_dtype

VOCAB = 65
MIXED = ModelConfig(2, 2, 32, 16, init_stddev=0.2, compute_dtype="bf16_bf16_f32")
FLOAT32 = dataclasses.replace(MIXED, compute_dtype="float32")


def rounded(array: jax.Array) -> np.ndarray:
    return np.asarray(jnp.asarray(array, jnp.bfloat16), np.float64)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 7), (4, 16), (6, 64)])
@pytest.mark.parametrize("n_part", [1, 3])
def test_products_and_their_gradients_round_operands_only(shape, n_part):
    x = jax.random.normal(jax.random.key(0), (*shape, 16))
    dys = [jax.random.normal(jax.random.key(i), (*shape, 24 // n_part)) for i in range(n_part)]
    layer = Linear(MIXED, 24 // n_part, n_part)
    params = layer.init(jax.random.key(2), x)["params"]
    apply = jax.jit(
        lambda p, x: (
            [*layer.apply({"params": p}, x)] if n_part > 1 else [layer.apply({"params": p}, x)]
        )
    )
    ys, pull_back = jax.vjp(apply, params, x)
    dparams, dx = jax.jit(pull_back)(dys)
    y, dy = jnp.concatenate(ys, -1), jnp.concatenate(dys, -1)
    x_NxD, dy_NxE = rounded(x).reshape(-1, 16), rounded(dy).reshape(-1, 24)
    kernel = rounded(params["kernel"])

    def close(found: jax.Array, expected: np.ndarray) -> None:
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)

    close(y, x_NxD @ kernel)
    close(dx, dy_NxE @ kernel.T)
    close(dparams["kernel"], x_NxD.T @ dy_NxE)
    close(dparams["bias"], np.asarray(dy, np.float64).reshape(-1, 24).sum(0))


def make(config: ModelConfig) -> tuple[GPT, dict]:
    model = GPT(config, VOCAB)
    return model, jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))


def test_a_model_differs_from_float32_by_rounding():
    model, params = make(MIXED)
    idx = jax.random.randint(jax.random.key(3), (3, 16), 0, VOCAB)
    found = jax.jit(model.apply)({"params": params}, idx)
    expected = jax.jit(GPT(FLOAT32, VOCAB).apply)({"params": params}, idx)
    error = jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)
    assert 1e-4 < error < 0.02


def test_transposed_kernels_compute_the_same():
    model, params = make(MIXED)
    cast = cast_blocks(params, MIXED)
    layer = cast["block_0"]["attn"]["c_attn"]
    assert layer["transposed_kernel"].shape == (96, 32)
    assert layer["transposed_kernel"].dtype == jnp.bfloat16
    assert layer["bias"].dtype == cast["lm_head"]["kernel"].dtype == jnp.float32
    for shape in ((1, 1), (3, 16)):
        idx = jax.random.randint(jax.random.key(3), shape, 0, VOCAB)
        found = jax.jit(model.apply)({"params": cast}, idx)
        expected = jax.jit(model.apply)({"params": params}, idx)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_auto_follows_the_processor(monkeypatch):
    auto = dataclasses.replace(MIXED, compute_dtype="auto")
    assert operand_dtype(auto) == compute_dtype(auto) == jnp.float32
    monkeypatch.setattr(linear, "has_amx", lambda: True)
    assert (operand_dtype(auto), compute_dtype(auto)) == (jnp.bfloat16, jnp.float32)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert operand_dtype(auto) == compute_dtype(auto) == jnp.bfloat16


def test_small_models_decode_in_float32(monkeypatch):
    monkeypatch.setattr(linear, "has_amx", lambda: True)
    model, params = make(dataclasses.replace(MIXED, compute_dtype="auto"))
    fastest, same = for_decoding(model, params)
    assert fastest.config == FLOAT32
    assert same is params


def test_decoding_in_bfloat16_follows_its_full_forward_pass():
    model, params = make(MIXED)
    fastest, cast = for_decoding(model, params)
    assert fastest is model
    prompts, options = [np.array([1, 2])], (Sampling(0.0), 8)
    chunks = generate_ids(model, cast, prompts, [0], 40, *options)
    text = [1, 2, *np.concatenate([chunk[0] for chunk in chunks]).tolist()]
    for n in range(2, 16):  # as long as the window is not full
        logits = jax.jit(model.apply)({"params": params}, jnp.array([text[:n]]))[0, -1]
        assert logits[text[n]] >= logits.max() - 0.02 * jnp.ptp(logits)
