import collections
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import CountingModel, FixedModel

from shakegpt_jax.config import Config, ModelConfig
from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.inference import drafting, language_model
from shakegpt_jax.inference import ngram as ngrams
from shakegpt_jax.inference.decoding import (
    acceptance_rate,
    decode_drafted,
    prefill,
    start_drafting,
)
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.inference.ngram import NGram, build_ngram
from shakegpt_jax.inference.sampler import generate_ids
from shakegpt_jax.inference.sampling import Sampling
from shakegpt_jax.model.gpt import GPT, init_params

VOCAB = 7
# Random characters at first; then only 0 and 1, whose contexts of four characters repeat.
TEXT = np.random.default_rng(0).integers(0, VOCAB, 400) % np.repeat([VOCAB, 2], [100, 300])


def witten_bell(text: list[int], context: tuple[int, ...]) -> list[float]:
    """Return the probabilities of the next character by the recursive definition."""
    n = len(context)
    following = collections.Counter(
        text[i] for i in range(n, len(text)) if tuple(text[i - n : i]) == context
    )
    shorter = witten_bell(text, context[1:]) if context else [1 / VOCAB] * VOCAB
    distinct, total = len(following), sum(following.values())
    if not total:
        return shorter
    return [(following[c] + distinct * shorter[c]) / (total + distinct) for c in range(VOCAB)]


def test_ngram_follows_the_definition_for_every_text():
    ngram = build_ngram(TEXT, VOCAB)
    seen = [TEXT[i : i + 6] for i in range(0, 390, 7)]
    texts = [*seen, *np.random.default_rng(1).integers(0, VOCAB, (40, 6)), TEXT[:0], TEXT[:2]]
    found = np.exp(np.asarray(ngram.log_probs_GxV, np.float64))[ngram.contexts(texts)]
    expected = [witten_bell(TEXT.tolist(), tuple(text[-4:])) for text in texts]
    np.testing.assert_allclose(found, expected, rtol=5e-3)


def test_large_vocabularies_get_shorter_contexts(monkeypatch):
    monkeypatch.setattr(ngrams, "_MAX_ENTRIES", 30 * VOCAB)
    ngram = build_ngram(TEXT, VOCAB)
    assert ngram.next_GxV.shape == ngram.log_probs_GxV.shape == (1 + VOCAB, VOCAB)
    found = np.exp(np.asarray(ngram.log_probs_GxV, np.float64))[ngram.contexts([TEXT[:5]])]
    np.testing.assert_allclose(found[0], witten_bell(TEXT.tolist(), (TEXT[4],)), rtol=5e-3)


@pytest.fixture(scope="module")
def trained() -> tuple[GPT, dict]:
    """Return a model whose next character depends strongly on all those before it."""
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=12), VOCAB)
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(2))
    return model, jax.tree.map(lambda p: 30 * p if p.ndim > 1 else p, params)


def generate(model, params, prompts, n, sampling, stride, ngram) -> list[list[int]]:
    seeds = list(range(len(prompts)))
    prompts = [np.array(prompt) for prompt in prompts]
    chunks = list(generate_ids(model, params, prompts, seeds, n, sampling, stride, ngram))
    return [np.concatenate(row).tolist() for row in zip(*chunks, strict=True)]


@pytest.mark.parametrize("stride", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 12))])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.0),
        pytest.param(Sampling(0.7), marks=pytest.mark.slow),
        pytest.param(Sampling(1.0, top_k=3), marks=pytest.mark.slow),
        Sampling(1.3, 6, 0.8, 0.1),
    ],
)
def test_drafting_does_not_change_the_text(trained, sampling, stride):
    prompts = [[1], [2, 3, 4], [5] * 12, list(range(7)) * 3, [4, 6]]
    plain = generate(*trained, prompts, 60, sampling, stride, None)
    for ngram in (build_ngram(np.ravel(plain), VOCAB), build_ngram(TEXT, VOCAB)):
        assert generate(*trained, prompts, 60, sampling, stride, ngram) == plain


def chain(order: list[int]) -> NGram:
    """Return a table that is certain that order[c] follows c."""
    log_probs = jnp.where(jax.nn.one_hot(jnp.array(order), VOCAB) > 0, 0, -jnp.inf)
    return NGram(log_probs.astype(jnp.float16), jnp.arange(VOCAB)[None].repeat(VOCAB, axis=0))


class Cycle(FixedModel):
    """Writes 0, 1, 2, ... and 0 again."""

    def head(self, x):
        return 100 * jax.nn.one_hot((x + 1) % VOCAB, VOCAB)


SCRIPT = np.ravel([[0, 1, 0, 2, 0, 3, 0, 4, 0, 5]] * 20)


class Script(FixedModel):
    """Writes SCRIPT, whatever it reads."""

    def extend(self, idx_BxT, cache):
        positions_BxT = cache.lengths_B[:, None] + jnp.arange(idx_BxT.shape[1])[None]
        return positions_BxT, super().extend(idx_BxT, cache)[1]

    def head(self, x):
        return 100 * jax.nn.one_hot(jnp.array(SCRIPT)[x + 1], VOCAB)


def test_drafts_follow_the_text_from_pass_to_pass():
    model, ngram = Script((1 / VOCAB,) * VOCAB), build_ngram(SCRIPT, VOCAB)
    state, _, _ = prefill(
        model, {}, SCRIPT[None, :6], np.array([6]), np.array([0]), 0, Sampling(0.0), n_spare=8
    )
    state = start_drafting(state, ngram.contexts([SCRIPT[:6]]), np.array([40]))
    for start in (7, 15, 23, 31):  # the latest character is 0: what follows depends on the others
        state, ids, counts = decode_drafted(model, {}, ngram, state, Sampling(0.0), 8, 1)
        assert (counts.tolist(), ids[0].tolist()) == ([8], SCRIPT[start : start + 8].tolist())


@pytest.mark.parametrize(
    ("ngram", "per_pass"),
    [
        (chain([1, 2, 3, 4, 5, 6, 0]), 8),  # always right
        (chain([0, 0, 0, 0, 0, 0, 1]), 1),  # always wrong
        (chain([1, 2, 0, 0, 0, 0, 0]), None),  # right for two of seven
    ],
)
def test_a_pass_accepts_what_the_model_would_have_written(ngram, per_pass):
    model = Cycle((1 / VOCAB,) * VOCAB)
    expected = [(3 + i) % VOCAB for i in range(40)]
    assert generate(model, {}, [[2]], 40, Sampling(1.0), 32, ngram) == [expected]
    state, first, _ = prefill(
        model, {}, np.array([[2]]), np.array([1]), np.array([0]), 0, Sampling(1.0), n_spare=8
    )
    assert first.tolist() == [[3]]
    state = start_drafting(state, np.array([2]), np.array([29]))
    for _ in range(2):
        before = int(state.left_B[0])
        state, ids, counts = decode_drafted(model, {}, ngram, state, Sampling(1.0), 8, 1)
        assert int(counts[0]) == before - int(state.left_B[0])
        assert ids[0, : counts[0]].tolist() == expected[30 - before :][: counts[0]]
        if per_pass:
            assert int(counts[0]) == per_pass


@pytest.mark.parametrize(
    ("order", "rate"), [([1, 2, 3, 4, 5, 6, 0], 1), ([1, 0, 3, 0, 5, 0, 0], 4 / 7)]
)
def test_the_acceptance_rate_is_the_share_of_drafts_that_the_model_would_choose(order, rate):
    model, text = Cycle((1 / VOCAB,) * VOCAB), np.arange(14) % VOCAB
    found = acceptance_rate(model, {}, chain(order), text, text, Sampling(0.7))
    assert float(found) == pytest.approx(rate)


def test_drafts_are_used_if_they_are_accepted_often_enough(monkeypatch):
    ids = np.arange(1_800, dtype=np.uint8) % 3
    corpus = SimpleNamespace(train_ids=ids, val_ids=ids)
    tokenizer = CharTokenizer.from_text("abc")
    config = Config(model=ModelConfig(1, 2, 16, 12)).freeze()
    model = GPT(config.model, tokenizer.vocab_size)
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    used = []

    def generate_ids(*arguments):
        used.append(arguments[-1] is not None)
        return iter(())

    monkeypatch.setattr(language_model, "generate_ids", generate_ids)
    monkeypatch.setattr(drafting, "drafting_pays", lambda *_: True)
    monkeypatch.setattr(LanguageModel, "load_corpus", lambda *_: corpus)
    for draft in (None, True, False):
        lm = LanguageModel(model, params, tokenizer, config, "")
        list(lm.stream(["a"], 9, draft=draft))
    assert used == [False, True, False]
    # A head that repeats the n-gram's certainty: after a comes b, after b comes c.
    wte = jnp.eye(3, 16) * 100
    head = jnp.roll(jnp.eye(3), 1, axis=1)
    sure = params | {"wte": {"embedding": wte}, "lm_head": {"kernel": jnp.eye(16, 3) @ head}}
    sure |= {"wpe": {"embedding": jnp.zeros((12, 16))}}
    list(LanguageModel(model, sure, tokenizer, config, "").stream(["a"], 9, temperature=0))
    assert used[-1]


def test_rows_wait_for_each_other():
    model = Cycle((1 / VOCAB,) * VOCAB)
    ngram = chain([1, 2, 3, 0, 0, 0, 0])  # wrong after 3, 4, 5 and 6
    prompts = [np.array([0]), np.array([3])]
    chunks = list(generate_ids(model, {}, prompts, [0, 0], 50, Sampling(1.0), 32, ngram))
    lengths = np.array([[len(row) for row in chunk] for chunk in chunks])
    assert lengths.sum(axis=0).tolist() == [50, 50]
    assert (lengths[:, 0] != lengths[:, 1]).any()
    assert lengths[0].tolist() == [1, 1]  # streaming starts with the first character
    for prompt, row in zip((0, 3), zip(*chunks, strict=True), strict=True):
        assert np.concatenate(row).tolist() == [(prompt + 1 + i) % VOCAB for i in range(50)]


def test_lengths_and_prompts_do_not_recompile():
    model = CountingModel((1 / VOCAB,) * VOCAB, 12)
    committed = jax.device_put({"a": jnp.zeros(1)}, jax.devices()[0])  # as restored ones are
    generate(model, committed, [[1, 2]], 40, Sampling(1.0), 5, build_ngram(TEXT, VOCAB))
    assert (traced := len(model.traces)) > 0
    generate(model, committed, [[1, 2, 3, 4]], 77, Sampling(0.7), 5, build_ngram(TEXT, VOCAB))
    assert len(model.traces) == traced
