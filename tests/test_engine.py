"""The engine that writes the texts of several requests at once."""

import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from shakegpt_jax.config import Config, ModelConfig
from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.inference.decoding import decode, prefill
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.inference.sampler import default_window_stride
from shakegpt_jax.inference.scoring import _window_logits
from shakegpt_jax.model.gpt import GPT, init_params
from shakegpt_jax.serving.api_error import ApiError
from shakegpt_jax.serving.batch import Batch
from shakegpt_jax.serving.decoding_state import put_rows, take_rows
from shakegpt_jax.serving.engine import Engine
from shakegpt_jax.serving.requests import parse_completion
from shakegpt_jax.serving.rows import Job, Piece

VOCABULARY = "abcdefghijk"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return make_model(block_size=20)


def make_model(block_size: int) -> LanguageModel:
    """Return a model whose next character depends strongly on all those before it."""
    config = Config()
    config.model = ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=block_size)
    model = GPT(config.model, len(VOCABULARY))
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(2))
    params = jax.tree.map(lambda p: 30 * p if p.ndim > 1 else p, params)
    return LanguageModel(model, params, CharTokenizer(VOCABULARY), config, "")


class Client:
    """Submits requests to an engine and waits for their texts."""

    def __init__(self, engine: Engine, lm: LanguageModel):
        self.engine, self.lm = engine, lm
        self.changed = threading.Condition()

    def submit(self, prompt: object = "ab", **body: object) -> Job:
        request = parse_completion({"prompt": prompt, **body}, self.lm.tokenizer, "m")
        return self.engine.submit(request, self.notify)

    def notify(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def wait(self, *jobs: Job) -> None:
        with self.changed:
            assert self.changed.wait_for(
                lambda: all(job.error or not job.n_unfinished for job in jobs), 60
            )

    def answers(self, job: Job) -> list[Piece]:
        """Wait for a job; return one piece for each of its texts."""
        self.wait(job)
        assert job.error is None
        pieces: dict[int, list[Piece]] = {}
        for piece in job.take():
            pieces.setdefault(piece.text, []).append(piece)
        return [Piece.concatenate(pieces[i]) for i in range(len(pieces))]

    def texts(self, job: Job) -> list[str]:
        return [self.lm.tokenizer.decode(piece.ids_T) for piece in self.answers(job)]

    def text(self, prompt: object = "ab", **body: object) -> str:
        (text,) = self.texts(self.submit(prompt, **body))
        return text

    def quiet(self) -> None:
        """Wait until the engine has forgotten all jobs."""
        deadline = time.monotonic() + 60
        while self.engine.n_text:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture(scope="module")
def client(lm) -> Iterator[Client]:
    engine = Engine(lm, max_batch=4, max_queue=40)
    engine.start()
    yield Client(engine, lm)
    engine.end(ApiError("over", status=503))
    engine.join()


OPTIONS = [
    {"temperature": 0},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 0.7, "seed": 2**32 - 1, "top_k": 3},
    {"temperature": 1.3, "seed": 7, "top_p": 0.8},
    {"temperature": 2.0, "seed": 7, "top_k": 5, "top_p": 0.9},
]
PROMPTS = ["a", "bcde", "kjihgfedcba" * 3, "ab" * 10, "a" * 19, "bca" * 7]


def test_texts_are_those_of_generate_whatever_else_is_written(client, lm):
    rng = np.random.default_rng(0)
    wanted, jobs = [], []
    for i in range(30):
        prompt, options = PROMPTS[i % len(PROMPTS)], OPTIONS[i % len(OPTIONS)]
        n_new = int(rng.integers(1, 70))
        jobs.append(client.submit(prompt, max_tokens=n_new, **options))
        wanted.append(lm.generate(prompt, n_new, **{"seed": 0, **options})[len(prompt) :])
    assert [client.texts(job)[0] for job in jobs] == wanted


def test_a_continuation_throws_the_same_dice(client):
    whole = client.text("abc", max_tokens=50, seed=3)
    for n in (1, 10, 37):
        rest = client.text("abc" + whole[:n], max_tokens=50 - n, seed=3, noise_offset=n)
        assert rest == whole[n:]
    assert client.text("abc" + whole[:10], max_tokens=40, seed=3) != whole[10:]


def test_samples_of_a_prompt_differ_and_their_seeds_reproduce_them(client, lm):
    job = client.submit(["a", "bcd"], n=3, max_tokens=40, seed=9)
    texts = client.texts(job)
    assert len(set(texts)) == 6
    seeds = [job.request.sample_seed(i) for i in range(3)]
    assert seeds[0] == 9
    for prompt, found in zip(["a"] * 3 + ["bcd"] * 3, texts, strict=True):
        seed = seeds[texts.index(found) % 3]
        assert lm.generate(prompt, 40, temperature=1.0, seed=seed) == prompt + found


def test_stop_strings_end_a_text_as_in_generate(client, lm):
    whole = lm.generate("ab", 60, temperature=1.0, seed=1)[2:]
    for stop in (whole[5:7], whole[16:19], [whole[30:33], whole[40:50]], "aaaaaaaaaaa"):
        options = {"temperature": 1.0, "seed": 1, "stop": stop}
        (piece,) = client.answers(client.submit("ab", max_tokens=60, logprobs=1, **options))
        text = lm.tokenizer.decode(piece.ids_T)
        assert text == lm.generate("ab", 60, **options)[2:]
        assert piece.finish_reason == ("length" if len(text) == 60 else "stop")
        assert piece.log_probs and len(piece.log_probs.chosen_T) == len(text)


def expected_log_probs(lm: LanguageModel, text: str) -> np.ndarray:
    stride = default_window_stride(lm.config.model.block_size)
    return log_softmax(lm.logits(text, stride=stride).astype(np.float64), axis=1)[:-1]


@pytest.mark.parametrize("prompt", ["ab", "abcdefghijk" * 6])
def test_log_probabilities_are_the_models_own(client, lm, prompt):
    options = {"temperature": 0.5, "top_k": 2, "seed": 4, "logprobs": len(VOCABULARY)}
    (written,) = client.answers(client.submit(prompt, max_tokens=60, **options))
    (echoed,) = client.answers(client.submit(prompt, max_tokens=60, echo=True, **options))
    text = prompt + lm.tokenizer.decode(written.ids_T)
    assert lm.tokenizer.decode(echoed.ids_T) == text
    ids, expected = lm.tokenizer.encode(text), expected_log_probs(lm, text)
    n = len(prompt)
    for piece, start in ((written, n), (echoed, 1)):
        chosen, top_ids, top = (a[-(len(text) - start) :] for a in piece.log_probs)
        rows = np.arange(start, len(text))
        np.testing.assert_allclose(chosen, expected[rows - 1, ids[start:]], atol=1e-4)
        sorted_ = np.take_along_axis(expected[rows - 1], top_ids, axis=1)
        np.testing.assert_allclose(top, sorted_, atol=1e-4)
        assert np.all(np.diff(top, axis=1) <= 0)
    assert np.isnan(echoed.log_probs.chosen_T[0])


def test_what_waits_for_a_client_holds_no_more_than_it_shows(client):
    job = client.submit("ab", max_tokens=10, logprobs=2)
    client.wait(job)
    for piece in job.take():
        for array in (piece.ids_T, *piece.log_probs):
            assert array.itemsize <= 4
            assert array.base is None or array.base.nbytes == array.nbytes


def test_a_text_can_be_scored_without_writing(client, lm):
    text = "abcdefghijk" * 5
    job = client.submit([text, "ab"], n=2, max_tokens=0, echo=True, logprobs=1)
    first, again, short, _ = client.answers(job)
    expected = expected_log_probs(lm, text)[np.arange(len(text) - 1), lm.tokenizer.encode(text)[1:]]
    np.testing.assert_allclose(first.log_probs.chosen_T[1:], expected, atol=1e-4)
    np.testing.assert_array_equal(first.log_probs.chosen_T, again.log_probs.chosen_T)
    assert (first.finish_reason, len(short.ids_T)) == ("length", 2)
    assert client.text("ab", max_tokens=0, echo=True) == "ab"


def test_one_that_leaves_makes_room(client):
    long = [client.submit("ab", max_tokens=10_000) for _ in range(4)]
    waiting = client.submit("ab", max_tokens=3)
    scored = client.submit("ab" * 5_000, max_tokens=1, echo=True, logprobs=0)
    for job in (*long, scored):
        client.engine.cancel(job)
    assert len(client.text("ab", max_tokens=5)) == 5
    client.wait(waiting)
    client.quiet()


def test_nothing_is_kept_of_one_that_leaves(client, monkeypatch):
    engine, decode = client.engine, Batch.decode

    def leave_and_decode(batch: Batch) -> None:
        for job in jobs:
            engine.cancel(job)
        decode(batch)

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "decode", leave_and_decode)
        scored = {"max_tokens": 1, "echo": True, "logprobs": 0}
        jobs = [client.submit("ab" * 5_000, **scored) for _ in range(2)]
        jobs.append(client.submit("ab", n=20, max_tokens=100))
        client.quiet()
    assert not any((*engine._waiting, engine._scoring, engine._batch.rows, engine._jobs))


def test_a_large_request_does_not_keep_others_waiting(client):
    large = client.submit("ab", n=40, max_tokens=200)
    assert len(client.text("ab", max_tokens=30)) == 30
    assert large.n_unfinished > 20
    client.engine.cancel(large)
    client.quiet()


def test_too_many_texts_are_refused(client):
    large = client.submit("ab", n=44, max_tokens=1_000)
    with pytest.raises(ApiError, match="44 texts are being written or wait") as refused:
        client.submit("ab")
    assert refused.value.status == 429
    with pytest.raises(ApiError, match="prompts times n is 45; this server takes 44") as refused:
        client.submit("ab", n=45)
    assert (refused.value.status, refused.value.param) == (400, "n")
    client.engine.cancel(large)
    client.quiet()
    assert client.text("ab")


@pytest.mark.parametrize(("failing", "function"), [(Batch, "decode"), (Engine, "_begin")])
def test_a_failure_ends_what_is_under_way_and_nothing_else(client, monkeypatch, failing, function):
    expected = client.text("abc", seed=1)

    def fail(*args: object) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(failing, function, fail)
        job = client.submit("ab", max_tokens=100)
        client.wait(job)
    assert job.error.status == 500
    assert str(job.error) == "the model failed: RESOURCE_EXHAUSTED: out of memory"
    client.quiet()
    assert client.text("abc", seed=1) == expected


def test_the_end_ends_all(lm):
    engine = Engine(lm, max_batch=1, max_queue=5)
    engine.start()
    client = Client(engine, lm)
    jobs = [client.submit("ab", max_tokens=10_000) for _ in range(3)]
    error = ApiError("shutting down", status=503)
    engine.end(error)
    client.wait(*jobs)
    engine.join()
    assert {job.error for job in jobs} == {error}
    with pytest.raises(ApiError, match="shutting down"):
        client.submit("ab")


def test_a_job_that_comes_just_before_the_end_ends_too(lm, monkeypatch):
    engine = Engine(lm, max_batch=1, max_queue=5)
    client, late, begin = Client(engine, lm), [], engine._begin

    def begin_and_end(job: Job) -> None:
        late.append(client.submit("ab"))
        engine.end(ApiError("shutting down", status=503))
        begin(job)

    monkeypatch.setattr(engine, "_begin", begin_and_end)
    engine.start()
    early = client.submit("ab", max_tokens=10_000)
    client.wait(early)
    engine.join()
    assert [job.error and str(job.error) for job in (early, *late)] == ["shutting down"] * 2


@pytest.mark.slow
def test_everything_is_compiled_at_the_start():
    lm = make_model(block_size=24)
    engine = Engine(lm, max_batch=4, max_queue=100)
    engine.warm_up()
    programs = (decode, prefill, put_rows, take_rows, _window_logits)
    sizes = [program._cache_size() for program in programs]
    engine.start()
    client = Client(engine, lm)
    jobs = [
        client.submit(p, n=k, max_tokens=50, **o) for p in PROMPTS for o in OPTIONS for k in (1, 2)
    ]
    jobs.append(client.submit("abc" * 50, echo=True, logprobs=1))
    client.wait(*jobs)
    engine.end(ApiError("over", status=503))
    engine.join()
    assert [program._cache_size() for program in programs] == sizes
