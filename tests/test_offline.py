"""The model in JavaScript in a real browser: JAX is the reference."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from browser import chromium, console_errors, go_offline

import shakegpt_jax
from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.inference.sampling import Sampling, sample_token
from shakegpt_jax.model.gpt import GPT, init_params
from shakegpt_jax.web.page import bundle, encode_array
from shakegpt_jax.web.prompt_page import model_data, page_facts

pytestmark = pytest.mark.slow

EXPOSED = (
    "makeBackend, randomBits, foldIn, randomKey, gumbel, gumbelOf, sampleCharacter, widenHalves, "
    "decodeArray, geluExact, geluTanh"
)
GENERATE = """
const [options, done] = arguments;
let text = "";
backend.generate({maxTokens: 60, temperature: 1, top_k: null, top_p: null, min_p: null, seed: 0,
  noiseOffset: 0, ...options}, (more) => { for (const {character} of more) text += character; })
  .then((reason) => done(reason === "length" ? text : reason))
  .catch((error) => done("! " + error.message));
"""

DAMAGED = (
    "The model in this file is damaged. Copy the file again, or export it again with "
    "shakegpt export --format html."
)


@pytest.fixture(scope="module")
def chrome(tmp_path_factory) -> Iterator[Any]:
    """A page with the scripts of the model alone."""
    script = f"{bundle('offline.js')}\nObject.assign(window, {{ {EXPOSED} }});"
    page = tmp_path_factory.mktemp("scripts") / "scripts.html"
    page.write_text(f'<meta charset="utf-8"><script type="module">{script}</script>')
    with chromium() as chrome:
        go_offline(chrome)
        chrome.set_script_timeout(120)
        chrome.get(page.as_uri())
        yield chrome
        assert console_errors(chrome) == []


@pytest.fixture
def lm(config) -> shakegpt_jax.LanguageModel:
    """Return a model of odd sizes whose parameters are all random, biases and scales too."""
    config.model.n_layer, config.model.n_head, config.model.n_embd = 2, 3, 9
    config.model.block_size = 7
    config.model.activation = "gelu_exact"
    tokenizer = CharTokenizer("\n Oé\u05e9\U0001f600adeghinorstu")
    model = GPT(config.freeze().model, tokenizer.vocab_size)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jax.numpy.asarray(rng.normal(0, 0.7, x.shape), x.dtype),
        init_params(model, jax.random.key(0)),
    )
    return shakegpt_jax.LanguageModel(model, params, tokenizer, config, "0" * 64)


def rounded(lm: shakegpt_jax.LanguageModel) -> shakegpt_jax.LanguageModel:
    """Return the model with the weights that a page holds."""
    params = jax.tree.map(lambda x: x.astype("float16").astype("float32"), lm.params)
    return dataclasses.replace(lm, params=params)


def open_model(chrome: Any, lm: shakegpt_jax.LanguageModel, *, float32: bool = False) -> None:
    data = page_facts(lm) | {"model": model_data(lm, float32=float32)}
    chrome.execute_script(
        "window.backend = makeBackend(JSON.parse(arguments[0]))", json.dumps(data)
    )


def generate(chrome: Any, prompt: str, **options: Any) -> str:
    return prompt + chrome.execute_async_script(GENERATE, {"prompt": prompt, **options})


def log_probs(chrome: Any, text: str) -> list[np.ndarray | None]:
    script = """
    const [text, done] = arguments;
    backend.score(text).then((rows) => done(rows.map((row) => row && [...row.values])))
    """
    rows = chrome.execute_async_script(script, text)
    return [row if row is None else np.array(row) for row in rows]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


SEEDS = (0, 1, 42, 2**31 - 1, 2**31, 2**32 - 1)


def test_random_bits_are_those_of_jax(chrome):
    script = "const [s, i] = arguments; return [...randomBits(foldIn(randomKey(s), i), 70)]"
    for seed in SEEDS:
        for index in (0, 1, 63, 100_000, 2**31 - 1):
            key = jax.random.fold_in(jax.random.key(seed), index)
            expected = np.asarray(jax.random.bits(key, (70,)))
            assert chrome.execute_script(script, seed, index) == expected.tolist()


def test_gumbel_noise_is_that_of_jax(chrome):
    script = "const [s, i] = arguments; return [...gumbel(foldIn(randomKey(s), i), 1000)]"
    for seed in SEEDS:
        expected = jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), 5), (1000,))
        found = chrome.execute_script(script, seed, 5)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=3e-7)
    lowest, highest = chrome.execute_script("return [0, 2 ** 32 - 1].map(gumbelOf)")
    tiny = np.finfo(np.float32).tiny
    assert lowest == pytest.approx(-np.log(-np.log(tiny)))
    assert highest == pytest.approx(-np.log(-np.log(1 - 2**-23)))


@pytest.mark.parametrize("top_k", [None, 1, 4, 100])
@pytest.mark.parametrize("top_p", [None, 0.01, 0.63, 0.95])
@pytest.mark.parametrize("min_p", [None, 0.07, 1])
def test_sampling_is_that_of_the_sampler(chrome, top_k, top_p, min_p):
    rng = np.random.default_rng(0)
    noise_BxV = rng.gumbel(size=(300, 12)).astype(np.float32)
    logits_BxV = (3 * rng.normal(size=(300, 12))).astype(np.float32)
    logits_BxV[100:] = rng.integers(0, 3, (200, 12))  # ties
    script = """
    const [logits, noise, options] = arguments;
    return logits.map((row, i) =>
      sampleCharacter(Float32Array.from(row), Float32Array.from(noise[i]), options));
    """
    for temperature in (0, 1e-30, 0.8, 3):
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        found = chrome.execute_script(script, logits_BxV.tolist(), noise_BxV.tolist(), options)
        expected = sample_token(noise_BxV, logits_BxV, Sampling(**options))
        assert found == np.asarray(expected).tolist()


def test_every_float16_is_decoded(chrome):
    halves = np.arange(2**16, dtype="<u2").view("<f2")
    halves = halves[np.isfinite(halves)]
    script = "return [...widenHalves(decodeArray(arguments[0], Uint8Array))]"
    found = np.array(chrome.execute_script(script, encode_array(halves)))
    np.testing.assert_array_equal(found, halves.astype(float))


def test_both_activations_are_those_of_jax(chrome):
    x = np.linspace(-12, 12, 1001, dtype=np.float32)
    for name, approximate in (("geluExact", False), ("geluTanh", True)):
        found = chrome.execute_script(f"return arguments[0].map({name})", x.tolist())
        expected = jax.nn.gelu(x, approximate)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", ["gelu_exact", "gelu_tanh"])
def test_probabilities_are_those_of_jax(chrome, lm, activation):
    shape = dataclasses.replace(lm.config.model, activation=activation)
    config = dataclasses.replace(lm.config, model=shape)
    model = GPT(shape, lm.model.vocab_size)
    lm = dataclasses.replace(lm, model=model, config=config)
    text = "\U0001f600 Oé\u05e9n"
    for float32, reference in ((True, lm), (False, rounded(lm))):
        open_model(chrome, lm, float32=float32)
        none, *found = log_probs(chrome, text + "a")
        assert none is None
        expected = log_softmax(reference.logits(text))
        assert expected.std() > 1
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_trained_model_in_float16_is_within_a_thousandth(chrome, finished, text):
    lm = shakegpt_jax.load(finished)
    open_model(chrome, lm)
    found = log_probs(chrome, text[:9])[1:]
    np.testing.assert_allclose(found, log_softmax(lm.logits(text[:8])), atol=1e-3)


@pytest.mark.parametrize("float32", [False, True])
def test_texts_are_those_of_python(chrome, lm, float32):
    open_model(chrome, lm, float32=float32)
    reference = lm if float32 else rounded(lm)
    for prompt in ("O", "Oh a\n", "Oh \U0001f600é ", "no strange thing\u05e9"):
        for options in (
            {"seed": 0, "temperature": 0},
            {"seed": 1, "temperature": 1},
            {"seed": 2**32 - 1, "temperature": 0.8, "top_k": 5},
            {"seed": 3, "temperature": 1.5, "top_p": 0.9},
            {"seed": 4, "temperature": 1, "top_k": 9, "top_p": 0.7},
            {"seed": 5, "temperature": 1.5, "min_p": 0.05},
        ):
            expected = reference.generate(prompt, 60, **options)
            assert generate(chrome, prompt, **options) == expected


def test_a_continuation_with_an_offset_is_the_rest_of_the_text(chrome, lm):
    open_model(chrome, lm)
    whole = generate(chrome, "Oh", seed=5)
    for n in (1, 4, 23):
        rest = generate(chrome, whole[: 2 + n], seed=5, noiseOffset=n, maxTokens=60 - n)
        assert rest == whole


def test_the_log_probabilities_of_new_characters_are_their_scores(chrome, lm):
    open_model(chrome, lm)
    script = """
    const [prompt, done] = arguments, all = [];
    backend.generate({prompt, maxTokens: 20, temperature: 0.5, top_k: 3, top_p: null, min_p: null,
      seed: 1, noiseOffset: 0}, (characters) => all.push(...characters))
      .then(() => done(all.map(({character, logProbs}) => [character, [...logProbs.values]])))
    """
    characters, found = zip(*chrome.execute_async_script(script, "Oh"), strict=True)
    scores = log_probs(chrome, "Oh" + "".join(characters))
    assert len(scores) == 22
    np.testing.assert_allclose(found, scores[2:], atol=1e-6)
    np.testing.assert_allclose(np.exp(found).sum(1), 1, atol=1e-5)


def test_the_page_lives_while_a_text_is_written_and_can_stop_it(chrome, lm):
    open_model(chrome, lm)
    script = """
    const done = arguments[0], controller = new AbortController();
    let count = 0, ticks = 0;
    const clock = setInterval(() => { if (++ticks === 20) controller.abort(); }, 5);
    backend.generate({prompt: "O", maxTokens: 1e7, temperature: 1, top_k: null, top_p: null,
      min_p: null, seed: 0, noiseOffset: 0}, (characters) => { count += characters.length; },
      controller.signal)
      .then(done, (error) => { clearInterval(clock); done([error.name, ticks, count]); })
    """
    name, ticks, count = chrome.execute_async_script(script)
    assert (name, ticks) == ("AbortError", 20)
    assert 0 < count < 1e7
    script = """
    const done = arguments[0], controller = new AbortController();
    controller.abort();
    backend.score("Oh", controller.signal).then(done, (error) => done(error.name))
    """
    assert chrome.execute_async_script(script) == "AbortError"


def test_what_the_model_cannot_read_is_named(chrome, lm):
    open_model(chrome, lm)
    unknown = generate(chrome, "O\U0001f600Z")
    assert unknown.endswith("! The model does not know the character 3, “Z”.")
    assert "The prompt is empty" in generate(chrome, "")
    script = "const done = arguments[0]; backend.verbatim('O').then(done)"
    assert "not in this file" in chrome.execute_async_script(script)["problem"]


def test_damaged_data_are_noticed(chrome, lm):
    good = page_facts(lm) | {"model": model_data(lm)}
    script = """
    const [data, done] = arguments, damaged = makeBackend(JSON.parse(data));
    damaged.score("O").then(() => done(""), (error) => done([error.message, damaged.problem]))
    """
    weights, sizes = good["model"]["weights"], good["model"]["sizes"]
    other = "A" if weights[100] != "A" else "B"
    for changes in (
        {},
        {"weights": weights[:100] + other + weights[101:]},
        {"weights": weights[:-8]},
        {"weights": weights[:100] + "é" + weights[101:]},
        {"weights": None},
        {"sizes": sizes[1:]},
        {"sizes": None},
        {"dtype": "float32"},
    ):
        data = good | {"model": good["model"] | changes}
        messages = chrome.execute_async_script(script, json.dumps(data))
        assert set(messages) == ({DAMAGED} if changes else set())
    for changes in ({"vocabulary": "Oab"}, {"width": 12}, {"layers": 3}, {"model": {}}):
        messages = chrome.execute_async_script(script, json.dumps(good | changes))
        assert set(messages) == {DAMAGED}
