import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import CountingModel, FixedModel

from shakegpt_jax.config import ModelConfig
from shakegpt_jax.inference.sampler import context_length, generate_ids
from shakegpt_jax.inference.sampling import Sampling, sample_token
from shakegpt_jax.model.gpt import GPT, init_params

VOCAB = 11
PROBABILITIES = (0.4, 0.3, 0.2, 0.1)


@pytest.fixture(scope="module")
def trained() -> tuple[GPT, dict]:
    """Return a model whose next character depends strongly on all those before it."""
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=8), VOCAB)
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(2))
    return model, jax.tree.map(lambda p: 30 * p if p.ndim > 1 else p, params)


def generate(model, params, prompts, n=20, seeds=None, sampling=None, stride=4) -> list[list[int]]:
    prompts = [np.array(prompt) for prompt in prompts]
    sampling = sampling or Sampling(1.0)
    chunks = generate_ids(model, params, prompts, seeds or [0] * len(prompts), n, sampling, stride)
    return [np.concatenate(row).tolist() for row in zip(*chunks, strict=True)]


@functools.partial(jax.jit, static_argnames="model")
def window_logits(model, params, idx_BxT: jax.Array) -> jax.Array:
    return model.apply({"params": params}, idx_BxT)


def crop_and_recompute(model, params, prompt, n, stride=1) -> list[int]:
    """Decode greedily, with a full forward pass over the window for every character."""
    text = list(prompt)
    block_size = model.config.block_size
    for _ in range(n):
        window = text[-context_length(len(text), block_size, stride) :]
        padded = jnp.array(window + [0] * (block_size - len(window)))
        logits_BxTxV = window_logits(model, params, padded[None])
        text.append(int(logits_BxTxV[0, len(window) - 1].argmax()))
    return text[len(prompt) :]


def test_window_stride_1_equals_crop_and_recompute_past_the_window(trained):
    for prompt in ([3], [1, 2, 3, 4, 5], list(range(8)), [5, 4] * 9):
        expected = crop_and_recompute(*trained, prompt, 30)
        assert len(set(expected)) > 2
        found = generate(*trained, [prompt], 30, sampling=Sampling(0.0), stride=1)
        assert found == [expected]


@pytest.mark.parametrize("stride", [1, 3, 4, 8])
def test_cached_decoding_equals_full_forward_passes_on_the_same_context(trained, stride):
    expected = crop_and_recompute(*trained, [1, 2, 3], 40, stride)
    assert generate(*trained, [[1, 2, 3]], 40, sampling=Sampling(0.0), stride=stride) == [expected]


def test_bfloat16_decoding_follows_its_full_forward_pass(trained):
    model, params = trained
    half = GPT(dataclasses.replace(model.config, compute_dtype="bfloat16"), VOCAB)
    prompt = [1, 2, 3]
    found = generate(half, params, [prompt], 30, sampling=Sampling(0.0))[0]
    text = prompt + found
    for n in range(len(prompt), len(text)):
        window = text[:n][-context_length(n, 8, 4) :]
        padded = jnp.array(window + [0] * (8 - len(window)))
        logits = window_logits(half, params, padded[None])[0, len(window) - 1]
        # Rounding may decide between characters of almost equal probability.
        assert logits[text[n]] >= logits.max() - 0.02 * jnp.ptp(logits)


def test_context_grows_again_after_it_is_cut():
    assert [context_length(n, 8, 1) for n in (1, 7, 8, 9, 10, 99)] == [1, 7, 8, 8, 8, 8]
    assert [context_length(n, 8, 3) for n in range(7, 16)] == [7, 8, 6, 7, 8, 6, 7, 8, 6]
    assert [context_length(n, 8, 8) for n in (8, 9, 16, 17)] == [8, 1, 8, 1]


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.9), Sampling(1.2, 5, 0.9)])
def test_prompts_in_a_batch_continue_as_they_would_alone(trained, sampling):
    prompts = [[1], [2, 3, 4], [5] * 8, list(range(11)), [4, 9]]
    seeds = [7, 8, 9, 10, 7]
    together = generate(*trained, prompts, 30, seeds, sampling)
    alone = [
        generate(*trained, [p], 30, [s], sampling)[0] for p, s in zip(prompts, seeds, strict=True)
    ]
    assert together == alone


def test_temperature_0_and_the_strictest_filters_are_greedy(trained):
    greedy = generate(*trained, [[1, 2]], sampling=Sampling(0.0))
    assert generate(*trained, [[1, 2]], sampling=Sampling(0.0, 3, 0.5, 0.1), seeds=[5]) == greedy
    assert generate(*trained, [[1, 2]], sampling=Sampling(1.3, top_k=1), seeds=[5]) == greedy
    assert generate(*trained, [[1, 2]], sampling=Sampling(1.0, top_p=1e-6), seeds=[5]) == greedy
    assert generate(*trained, [[1, 2]], sampling=Sampling(1.3, min_p=1.0), seeds=[5]) == greedy


def test_the_seed_determines_the_text(trained):
    texts = [generate(*trained, [[1, 2]], 40, [seed]) for seed in (0, 0, 1, 2)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2] != texts[3]


def test_filters_that_keep_all_change_nothing(trained):
    plain = generate(*trained, [[1, 2]], 40)
    assert generate(*trained, [[1, 2]], 40, sampling=Sampling(1.0, VOCAB, 1.0, 0.0)) == plain


def test_lengths_need_not_be_multiples_of_a_chunk(trained):
    whole = generate(*trained, [[1, 2]], 70)[0]
    for n in (1, 2, 6, 7, 8, 33, 34, 69):
        assert generate(*trained, [[1, 2]], n)[0] == whole[:n]


def frequencies(sampling: Sampling) -> np.ndarray:
    """Return the share of each character in 200 texts of 50 characters."""
    model = FixedModel(PROBABILITIES)
    ids = generate(model, {}, [[0]] * 200, 50, list(range(200)), sampling)
    return np.bincount(np.ravel(ids), minlength=4) / 10_000


def normalized(*weights: float) -> np.ndarray:
    return np.array(weights) / sum(weights)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), PROBABILITIES),
        (Sampling(0.5), normalized(0.16, 0.09, 0.04, 0.01)),
        (Sampling(2.0), normalized(*np.sqrt(PROBABILITIES))),
        (Sampling(0.0), (1, 0, 0, 0)),
        (Sampling(1.0, top_k=2), normalized(0.4, 0.3, 0, 0)),
        (Sampling(1.0, top_k=9), PROBABILITIES),
        (Sampling(1.0, top_p=0.39), (1, 0, 0, 0)),
        (Sampling(1.0, top_p=0.69), normalized(0.4, 0.3, 0, 0)),
        (Sampling(1.0, top_p=0.71), normalized(0.4, 0.3, 0.2, 0)),
        # Temperature applies before top-p, and so does top-k.
        (Sampling(0.5, top_p=0.8), normalized(0.16, 0.09, 0, 0)),
        (Sampling(1.0, top_k=3, top_p=0.75), normalized(0.4, 0.3, 0, 0)),
        (Sampling(1.0, min_p=0.49), normalized(0.4, 0.3, 0.2, 0)),
        (Sampling(2.0, min_p=0.51), normalized(*np.sqrt((0.4, 0.3, 0.2)), 0)),
    ],
)
def test_samples_follow_known_probabilities(sampling, expected):
    # Four standard deviations of a frequency near 1/2 over 10,000 draws.
    found = frequencies(sampling)
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert np.all((found == 0) == (np.array(expected) == 0))


def test_successive_characters_are_drawn_independently():
    ids = np.array(generate(FixedModel((0.5, 0.5)), {}, [[0]] * 100, 100, list(range(100))))
    changes = ids[:, 1:] != ids[:, :-1]
    assert changes.mean() == pytest.approx(0.5, abs=0.03)


def test_a_temperature_close_to_0_is_greedy():
    noise = jax.random.gumbel(jax.random.key(0), (8, 5))
    logits = 100 * jnp.arange(1.0, 6.0)[None].repeat(8, axis=0)  # over 1e-37: infinite
    assert sample_token(noise, logits, Sampling(1e-37)).tolist() == [4] * 8


def test_top_k_keeps_k_characters_when_logits_are_equal():
    noise = jax.random.gumbel(jax.random.key(0), (100, 6))
    chosen = sample_token(noise, jnp.zeros((100, 6)), Sampling(1.0, top_k=2))
    assert set(chosen.tolist()) == {0, 1}


def test_rows_with_their_own_options_are_sampled_as_alone():
    keys = jax.random.split(jax.random.key(0), 3)
    noise, logits = jax.random.gumbel(keys[0], (6, VOCAB)), jax.random.normal(keys[1], (6, VOCAB))
    rows = [Sampling(0.0), Sampling(1.0), Sampling(0.7, 3), None, Sampling(1.2, None, 0.6)]
    rows.append(Sampling.of(VOCAB, 2.0, 10**12, 0.9, 0.05))
    found = sample_token(noise, logits, Sampling.stack(rows, VOCAB)).tolist()
    for row, sampling in enumerate(rows):
        if sampling:
            alone = sample_token(noise[row : row + 1], logits[row : row + 1], sampling)
            assert [found[row]] == alone.tolist()


@pytest.mark.slow
def test_filters_keep_what_those_of_transformers_keep():
    torch = pytest.importorskip("torch", reason="needs pip install torch transformers")
    pytest.importorskip("transformers", reason="needs pip install torch transformers")
    from transformers.generation import logits_process as warpers

    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (200, VOCAB)).astype(np.float32)
    for temperature, top_k, top_p, min_p in itertools.product(
        (0.5, 1.7), (None, 4), (None, 0.9), (None, 1e-3, 0.2, 1.0)
    ):
        scores = warpers.TemperatureLogitsWarper(temperature)(None, torch.tensor(logits))
        if top_k:
            scores = warpers.TopKLogitsWarper(top_k)(None, scores)
        if top_p:
            scores = warpers.TopPLogitsWarper(top_p)(None, scores)
        if min_p:
            scores = warpers.MinPLogitsWarper(min_p)(None, scores)
        kept = np.isfinite(scores.numpy())
        sampling = Sampling(temperature, top_k, top_p, min_p)
        # With much noise, a character is drawn if it is kept.
        drawn = sample_token(1e6 * np.eye(VOCAB, dtype=np.float32)[:, None], logits[None], sampling)
        np.testing.assert_array_equal(drawn == np.arange(VOCAB)[:, None], kept.T)


def test_other_lengths_and_sampling_options_do_not_recompile():
    model = CountingModel(PROBABILITIES, 8)
    generate(model, {}, [[1, 2]], 40, sampling=Sampling(1.0, 2, 0.5))
    assert (traced := len(model.traces)) > 0
    generate(model, {}, [[1, 2, 3]], 77, [9], Sampling(0.7, 3, 0.9))
    assert len(model.traces) == traced
