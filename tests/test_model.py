import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shakegpt_jax.config import Config, ModelConfig
from shakegpt_jax.model import attention, gpt
from shakegpt_jax.model.attention import attend, attend_causally, cudnn_attends
from shakegpt_jax.model.gpt import GPT, KVCache, init_cache, init_params, train_flops_per_character
from shakegpt_jax.model.layers import Dropout
from shakegpt_jax.model.linear import cast_blocks

VOCAB = 65
MEDIUM = ModelConfig(n_layer=2, n_head=4, n_embd=64, block_size=32)


def make(config: ModelConfig, seed: int = 0) -> tuple[GPT, dict]:
    model = GPT(config, VOCAB)
    return model, jax.jit(init_params, static_argnums=0)(model, jax.random.key(seed))


@functools.partial(jax.jit, static_argnames=("model", "method", "train"))
def apply(model: GPT, params: dict, *args, **options):
    return model.apply({"params": params}, *args, **options)


@jax.jit
def larger_params(params: dict) -> dict:
    """Move all parameters, biases included, far from their initial values.

    Every part of the model then has a visible effect on the logits.
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [p + 0.3 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def numpy_forward(params: dict, idx: np.ndarray, n_layer: int, n_head: int) -> np.ndarray:
    """An independent forward pass in float64, for one window."""

    def layer_norm(x, p):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p.get("bias", 0.0)

    def linear(x, p):
        return x @ p["kernel"] + p.get("bias", 0.0)

    def attention(x, p):
        q, k, v = np.split(linear(x, p["c_attn"]), 3, axis=-1)
        size = q.shape[-1] // n_head
        heads = []
        for h in range(n_head):
            part = slice(h * size, (h + 1) * size)
            out = np.zeros((len(x), size))
            for t in range(len(x)):
                scores = k[: t + 1, part] @ q[t, part] / math.sqrt(size)
                weights = np.exp(scores - scores.max())
                out[t] = weights / weights.sum() @ v[: t + 1, part]
            heads.append(out)
        return linear(np.concatenate(heads, -1), p["c_proj"])

    def mlp(x, p):
        x = linear(x, p["c_fc"])
        gelu = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return linear(gelu, p["c_proj"])

    x = params["wte"]["embedding"][idx] + params["wpe"]["embedding"][np.arange(len(idx))]
    for i in range(n_layer):
        block = params[f"block_{i}"]
        x = x + attention(layer_norm(x, block["ln_1"]), block["attn"])
        x = x + mlp(layer_norm(x, block["ln_2"]), block["mlp"])
    return linear(layer_norm(x, params["ln_f"]), params["lm_head"])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("change", [larger_params, lambda params: params])
def test_forward_pass_agrees_with_numpy(change, bias):
    model, params = make(dataclasses.replace(MEDIUM, bias=bias))
    params = change(params)
    assert bias or "bias" not in str(params)
    idx = np.random.default_rng(0).integers(0, VOCAB, (2, 32))
    params64 = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    expected = np.stack([numpy_forward(params64, row, 2, 4) for row in idx])
    atol = 1e-5 * max(1, np.abs(expected).max())
    np.testing.assert_allclose(apply(model, params, idx), expected, atol=atol)


def test_parameter_tree_reads_like_the_architecture(config):
    config.model.n_layer = 2
    _, params = make(config.model)
    assert set(params) == {"wte", "wpe", "block_0", "block_1", "ln_f", "lm_head"}
    assert set(params["block_0"]) == {"ln_1", "attn", "ln_2", "mlp"}
    assert params["block_0"]["attn"]["c_attn"]["kernel"].shape == (16, 48)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_default_shape_has_85_million_parameters():
    model = GPT(Config().model, VOCAB)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    count = sum(p.size for p in jax.tree.leaves(shapes))
    # 12 blocks of 12 D^2 + 13 D, two embeddings, the last LayerNorm and the head.
    d = 768
    assert count == 12 * (12 * d**2 + 13 * d) + (VOCAB + 128 + 2 + VOCAB) * d
    assert round(count / 1e6) == 85
    flops = 128 * 128 * train_flops_per_character(Config().model, VOCAB)
    assert flops == pytest.approx(8.6e12, rel=0.01)


def test_initial_parameters_follow_gpt2():
    _, params = make(MEDIUM)
    block = params["block_1"]
    assert np.std(params["wte"]["embedding"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(block["attn"]["c_attn"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    for part in ("attn", "mlp"):
        # Divided by the square root of the 4 layers that write to the residual stream.
        assert np.std(block[part]["c_proj"]["kernel"]) == pytest.approx(0.02 / 2, rel=0.05)
        assert not np.any(block[part]["c_proj"]["bias"])


def test_initial_loss_is_close_to_uniform(config):
    model, params = make(config.model)
    idx = jax.random.randint(jax.random.key(2), (64, 9), 0, VOCAB)
    log_probs = jax.nn.log_softmax(apply(model, params, idx[:, :-1]))
    loss = -jnp.take_along_axis(log_probs, idx[:, 1:, None], axis=-1).mean()
    assert loss == pytest.approx(math.log(VOCAB), abs=0.05)


def test_no_position_attends_to_a_later_one(config):
    model, params = make(config.model)
    params = larger_params(params)
    embedding = params["wte"]["embedding"]

    def logits_of(embedded_TxD: jax.Array) -> jax.Array:
        # Each position has its own vocabulary entry, hence its own gradient.
        swapped = params | {"wte": {"embedding": embedding.at[:8].set(embedded_TxD)}}
        return apply(model, swapped, jnp.arange(8)[None])[0]

    jacobian = jax.jit(jax.jacobian(logits_of))(embedding[:8])  # (T, V, T, D)
    influence = np.abs(jacobian).max(axis=(1, 3))
    assert np.all(influence[np.triu_indices(8, k=1)] == 0)
    assert np.all(influence[np.tril_indices(8)] > 0)


@pytest.mark.parametrize("n_time", [1, 64, 65, 200, 300])
def test_attention_in_blocks_equals_that_of_jax(n_time):
    """For up to four blocks, and a last one that is shorter."""
    keys = jax.random.split(jax.random.key(0), 4)
    *qkv, weights = (jax.random.normal(key, (2, 3, n_time, 8)) for key in keys)

    def ours(*qkv: jax.Array) -> jax.Array:
        return (attend_causally(*qkv) * weights).sum()

    def theirs(*qkv: jax.Array) -> jax.Array:
        q, k, v = (x.transpose(0, 2, 1, 3) for x in qkv)
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")
        return (y.transpose(0, 2, 1, 3) * weights).sum()

    for found, expected in zip(
        jax.tree.leaves(jax.value_and_grad(ours, (0, 1, 2))(*qkv)),
        jax.tree.leaves(jax.value_and_grad(theirs, (0, 1, 2))(*qkv)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_four_blocks_compute_five_eighths_of_the_scores():
    qkv = [jax.ShapeDtypeStruct((1, 1, 256, 64), jnp.float32)] * 3
    mask = jax.ShapeDtypeStruct((256, 256), bool)
    blocks = jax.jit(attend_causally).lower(*qkv).cost_analysis()
    whole = jax.jit(attend).lower(*qkv, mask).cost_analysis()
    assert blocks["flops"] == pytest.approx(5 / 8 * whole["flops"], rel=0.05)


def extend(model: GPT, params, idx: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
    x, cache = apply(model, params, idx, cache, method="extend")
    return apply(model, params, x, method="head"), cache


@pytest.mark.parametrize("remat", [False, True])
def test_cached_decoding_equals_the_full_forward_pass(config, monkeypatch, remat):
    monkeypatch.setattr(attention, "_MIN_BLOCK", 2)  # of the full pass
    config.model.n_layer, config.model.remat = 2, remat
    model, params = make(config.model)
    params = larger_params(params)
    idx = jax.random.randint(jax.random.key(3), (3, 8), 0, VOCAB)
    expected = apply(model, params, idx)
    cache = init_cache(config.model, 3)
    # Three characters at once, then one by one.
    logits, cache = extend(model, params, idx[:, :3], cache)
    np.testing.assert_allclose(logits, expected[:, :3], rtol=1e-5, atol=1e-5)
    for t in range(3, 8):
        logits, cache = extend(model, params, idx[:, t : t + 1], cache)
        np.testing.assert_allclose(logits[:, 0], expected[:, t], rtol=1e-5, atol=1e-5)
    assert cache.lengths_B.tolist() == [8, 8, 8]


def test_rows_of_different_lengths_share_a_cache(config):
    model, params = make(config.model)
    params = larger_params(params)
    idx = jax.random.randint(jax.random.key(3), (3, 8), 0, VOCAB)
    expected = apply(model, params, idx)
    lengths = jnp.array([1, 4, 7])
    padded = jnp.where(jnp.arange(8)[None] < lengths[:, None], idx, 64)
    rows = jnp.arange(3)
    logits, cache = extend(model, params, padded, init_cache(config.model, 3))
    last = logits[rows, lengths - 1]
    np.testing.assert_allclose(last, expected[rows, lengths - 1], rtol=1e-5, atol=1e-5)
    cache = cache._replace(lengths_B=lengths)  # without the padding
    following = idx[rows, lengths][:, None]
    logits, cache = extend(model, params, following, cache)
    np.testing.assert_allclose(logits[:, 0], expected[rows, lengths], rtol=1e-5, atol=1e-5)


def test_spare_slots_take_rejected_characters(config):
    model, params = make(config.model)
    params = larger_params(params)
    idx = jax.random.randint(jax.random.key(3), (3, 8), 0, VOCAB)
    expected = apply(model, params, idx)
    lengths = jnp.array([2, 5, 7])
    cache = init_cache(config.model, 3, n_spare=4)
    _, cache = extend(model, params, idx, cache)
    cache = cache._replace(lengths_B=lengths)
    # One right character, then wrong ones that reach beyond block_size.
    rows = jnp.arange(3)
    drafted = jnp.full((3, 4), 64).at[:, 0].set(idx[rows, lengths])
    logits, cache = extend(model, params, drafted, cache)
    np.testing.assert_allclose(logits[:, 0], expected[rows, lengths], rtol=1e-5, atol=1e-5)
    cache = cache._replace(lengths_B=jnp.minimum(lengths + 1, 7))
    right = idx[rows, cache.lengths_B][:, None]
    logits, _ = extend(model, params, right, cache)
    found = logits[:, 0]
    np.testing.assert_allclose(found, expected[rows, cache.lengths_B], rtol=1e-5, atol=1e-5)


def test_dropout_applies_in_training_only(config):
    config.model.dropout = 0.5
    model, params = make(config.model)
    idx = jnp.zeros((1, 8), jnp.int32)

    def train_logits(seed: int) -> jax.Array:
        rngs = {"dropout": jax.random.key(seed)}
        return apply(model, params, idx, train=True, rngs=rngs)

    assert jnp.array_equal(train_logits(0), train_logits(0))
    assert not jnp.array_equal(train_logits(0), train_logits(1))
    plain = apply(GPT(ModelConfig(1, 2, 16, 8), VOCAB), params, idx)
    assert jnp.array_equal(apply(model, params, idx), plain)


def test_refuses_a_window_that_is_too_long(config):
    model, params = make(config.model)
    with pytest.raises(ValueError, match="9 characters exceed block_size 8"):
        apply(model, params, jnp.zeros((1, 9), jnp.int32))


def test_bfloat16_keeps_float32_parameters_and_logits(config):
    model, params = make(config.model)
    half = GPT(dataclasses.replace(config.model, compute_dtype="bfloat16"), VOCAB)
    params = larger_params(params)
    idx = jax.random.randint(jax.random.key(3), (3, 8), 0, VOCAB)
    logits = apply(half, params, idx)
    assert logits.dtype == jnp.float32
    expected = apply(model, params, idx)
    assert not jnp.array_equal(logits, expected)
    error = jnp.linalg.norm(logits - expected) / jnp.linalg.norm(expected)
    assert error < 0.03


@pytest.mark.parametrize(("bias", "n_linear"), [(True, 4), (False, 6)])
def test_every_matmul_but_the_head_is_bfloat16_in_forward_and_backward_pass(config, bias, n_linear):
    model, params = make(dataclasses.replace(config.model, compute_dtype="bfloat16", bias=bias))
    idx = jnp.zeros((3, 8), jnp.int32)
    gradient = jax.jit(jax.grad(lambda params: apply(model, params, idx).sum()))
    lines = gradient.lower(params).as_text().splitlines()
    matmuls = [line for line in lines if "dot_general" in line]
    in_float32 = [line for line in matmuls if "xf32>, tensor" in line or "xf32>) ->" in line]
    # Of a block: linear layers and 2 products of attention, each with a gradient for both sides.
    assert len(matmuls) == 3 * (n_linear + 2) * config.model.n_layer + len(in_float32)
    assert in_float32
    assert all(f"{VOCAB}x" in line for line in in_float32)


@pytest.mark.parametrize(
    ("rate", "share"), [(0.1, 26 / 256), (0.5, 0.5), (1e-4, 1 / 256), (0.999, 255 / 256)]
)
@pytest.mark.parametrize("width", [1, 6, 64])
def test_dropout_zeros_an_independent_share_and_keeps_the_mean(rate, share, width):
    n = 192_000 // width

    def draw(seed: int) -> np.ndarray:
        rngs = {"dropout": jax.random.key(seed)}
        ones = jnp.ones((n, width))
        return np.asarray(Dropout(rate).apply({}, ones, deterministic=False, rngs=rngs))

    dropped = draw(0)
    zero = dropped == 0
    error = (share * (1 - share) / zero.size) ** 0.5  # standard error of a share
    assert zero.mean() == pytest.approx(share, abs=5 * error)
    np.testing.assert_allclose(dropped[~zero], 1 / (1 - share), rtol=1e-6)
    # Neighbours, which may share a random word, and other seeds are independent.
    neighbours = [np.roll(zero, 1, axis=0), draw(1) == 0]
    neighbours += [np.roll(zero, 1, axis=1)] if width > 1 else []
    for other in neighbours:
        error = share * ((1 - share**2) / zero.size) ** 0.5
        assert (zero & other).mean() == pytest.approx(share**2, abs=5 * error)
    assert Dropout(0.0).apply({}, jnp.ones(3), deterministic=False).tolist() == [1, 1, 1]


def test_blocks_are_cast_once_for_decoding(config):
    config.model.compute_dtype = "bfloat16"
    model, params = make(config.model)
    cast = cast_blocks(params, config.model)
    layer = cast["block_0"]["mlp"]["c_fc"]
    assert layer["transposed_kernel"].dtype == jnp.bfloat16
    assert (
        layer["transposed_kernel"].shape == params["block_0"]["mlp"]["c_fc"]["kernel"].shape[::-1]
    )
    for name in ("wte", "wpe", "ln_f", "lm_head"):
        assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(cast[name]))
    assert cast["block_0"]["ln_1"]["scale"].dtype == jnp.float32
    idx = jax.random.randint(jax.random.key(3), (3, 8), 0, VOCAB)
    assert (apply(model, cast, idx) == apply(model, params, idx)).all()
    config.model.compute_dtype = "float32"
    same = jax.tree.map(lambda a, b: a is b, cast_blocks(params, config.model), params)
    assert all(jax.tree.leaves(same))


def test_cudnn_gets_whole_windows_and_its_result_is_used(config, monkeypatch):
    """Attention by `jax.nn.dot_product_attention`, which cuDNN computes on GPUs."""
    model, params = make(config.model)
    params = larger_params(params)
    idx = jax.random.randint(jax.random.key(3), (3, 8), 0, VOCAB)
    expected, shorter = apply(model, params, idx), apply(model, params, idx[:, :5])
    called = []

    def attend_by_jax(*qkv: jax.Array) -> jax.Array:
        called.append(qkv[0].shape)
        return jax.nn.dot_product_attention(*qkv, is_causal=True, implementation="xla")

    monkeypatch.setattr(gpt, "cudnn_attends", lambda _: True)
    monkeypatch.setattr(gpt, "attend_causally_by_cudnn", attend_by_jax)
    found = model.apply({"params": params}, idx)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert called == [(3, 8, 2, 8)] * config.model.n_layer
    found = model.apply({"params": params}, idx[:, :5])
    np.testing.assert_allclose(found, shorter, rtol=1e-4, atol=1e-4)
    assert len(called) == config.model.n_layer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cudnn_is_not_asked_on_a_cpu(config, dtype):
    assert not cudnn_attends(dataclasses.replace(config.model, compute_dtype=dtype))
