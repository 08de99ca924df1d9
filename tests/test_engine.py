"""The engine that writes the texts of several requests at once."""

import contextlib
import dataclasses
import gc
import json
import queue
import time
import weakref
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from shakegpt_jax.config import Config, ModelConfig
from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.inference.sampler import default_window_stride
from shakegpt_jax.model.gpt import GPT, init_params
from shakegpt_jax.serving.api import ApiError, parse_completion
from shakegpt_jax.serving.batch import Batch
from shakegpt_jax.serving.engine import Engine
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
        self.received: dict[Job, queue.SimpleQueue[Piece | ApiError]] = {}

    def submit(self, prompt: object = "ab", **body: object) -> Job:
        body = json.dumps({"prompt": prompt, **body}).encode()
        received = queue.SimpleQueue()
        request = parse_completion(body, self.lm.tokenizer, "m")
        job = self.engine.submit(request, received.put)
        self.received[job] = received
        return job

    def error(self, job: Job) -> ApiError:
        """Wait for the error that ends a job."""
        while not isinstance(received := self.received[job].get(timeout=60), ApiError):
            pass
        return received

    def pieces(self, job: Job) -> list[list[Piece]]:
        """Wait for a job; return the pieces of each of its texts."""
        pieces = [[] for _ in range(job.request.n_text)]
        while not all(each and each[-1].finish_reason for each in pieces):
            piece = self.received[job].get(timeout=60)
            pieces[piece.index].append(piece)
        return pieces

    def records(self, job: Job) -> list[np.ndarray]:
        pieces = self.pieces(job)
        return [np.concatenate([piece.records_T for piece in each]) for each in pieces]

    def decode(self, records_T: np.ndarray) -> str:
        return self.lm.tokenizer.decode(records_T["id"])

    def texts(self, job: Job) -> list[str]:
        return [self.decode(records_T) for records_T in self.records(job)]

    def text(self, prompt: object = "ab", **body: object) -> str:
        (text,) = self.texts(self.submit(prompt, **body))
        return text

    def leave(self, *jobs: Job) -> None:
        """Leave jobs, and wait until the engine has let go of all."""
        for job in jobs:
            job.cancelled = True
        deadline = time.monotonic() + 60
        while self.engine.n_text:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@contextlib.contextmanager
def running(lm: LanguageModel, max_batch: int = 1, max_queue: int = 40) -> Iterator[Client]:
    engine = Engine(lm, max_batch, max_queue)
    engine.start()
    yield Client(engine, lm)
    engine.end(ApiError("over", status=503))
    engine.join()


@pytest.fixture(scope="module")
def client(lm) -> Iterator[Client]:
    with running(lm, max_batch=4) as client:
        yield client


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
        (pieces,) = client.pieces(client.submit("ab", max_tokens=60, logprobs=1, **options))
        text = "".join(client.decode(piece.records_T) for piece in pieces)
        assert text == lm.generate("ab", 60, **options)[2:]
        assert pieces[-1].finish_reason == ("length" if len(text) == 60 else "stop")


def test_the_stop_string_that_is_complete_first_ends_a_text(client, lm):
    whole = lm.generate("ab", 60, temperature=1.0, seed=1)[2:]
    for start in range(1, 40, 3):
        # The longer one begins earlier and is complete later.
        long, short = whole[start : start + 12], whole[start + 4 : start + 7]
        for stop in ([long, short], [short, long]):
            text = client.text("ab", max_tokens=60, seed=1, stop=stop)
            assert text == whole[: whole.index(short)], stop


def expected_log_probs(lm: LanguageModel, text: str) -> np.ndarray:
    stride = default_window_stride(lm.config.model.block_size)
    return log_softmax(lm.logits(text, stride=stride).astype(np.float64), axis=1)[:-1]


@pytest.mark.parametrize("prompt", ["ab", "abcdefghijk" * 6])
def test_log_probabilities_are_the_models_own(client, lm, prompt):
    options = {"temperature": 0.5, "top_k": 2, "seed": 4, "logprobs": len(VOCABULARY)}
    (written,) = client.records(client.submit(prompt, max_tokens=60, **options))
    (echoed,) = client.records(client.submit(prompt, max_tokens=60, echo=True, **options))
    text = prompt + client.decode(written)
    assert client.decode(echoed) == text
    ids, expected = lm.tokenizer.encode(text), expected_log_probs(lm, text)
    for found, start in ((written, len(prompt)), (echoed[1:], 1)):
        rows = np.arange(start, len(text))
        chosen = expected[rows - 1, ids[start:]]
        np.testing.assert_allclose(found["log_prob"], chosen, atol=1e-4)
        sorted_ = np.take_along_axis(expected[rows - 1], found["top_ids"], axis=1)
        np.testing.assert_allclose(found["top"], sorted_, atol=1e-4)
        assert np.all(np.diff(found["top"], axis=1) <= 0)
    assert np.isnan(echoed["log_prob"][0])


def test_what_waits_for_a_client_holds_no_more_than_it_shows(client):
    (pieces,) = client.pieces(client.submit("ab", max_tokens=10, logprobs=2))
    for records_T in (piece.records_T for piece in pieces):
        assert records_T.itemsize == 4 * (2 + 2 * 2)
        assert records_T.base is None or records_T.base.nbytes == records_T.nbytes


def test_a_text_can_be_scored_without_writing(client, lm):
    text = "abcdefghijk" * 5
    job = client.submit([text, "ab"], n=2, max_tokens=0, echo=True, logprobs=1)
    (*_, last), *_ = pieces = client.pieces(job)
    first, again, short, _ = (np.concatenate([p.records_T for p in each]) for each in pieces)
    expected = expected_log_probs(lm, text)[np.arange(len(text) - 1), lm.tokenizer.encode(text)[1:]]
    np.testing.assert_allclose(first["log_prob"][1:], expected, atol=1e-4)
    np.testing.assert_array_equal(first["log_prob"], again["log_prob"])
    assert (last.finish_reason, len(short)) == ("length", 2)
    assert client.text("ab", max_tokens=0, echo=True) == "ab"


def test_nothing_is_kept_of_one_that_leaves(client):
    scored = {"max_tokens": 1, "echo": True, "logprobs": 0}
    jobs = [client.submit("ab" * 5_000, **scored) for _ in range(2)]
    jobs += [client.submit("ab", n=n, max_tokens=10_000) for n in (1, 20)]
    waiting = client.submit("ab", max_tokens=3)
    client.received[jobs[2]].get(timeout=60)  # while it is written
    for job in jobs:
        job.cancelled = True
    assert len(client.text("ab", max_tokens=5)) == 5
    client.pieces(waiting)
    client.leave()
    left = [weakref.ref(job) for job in (*jobs, waiting)]
    del job, jobs, waiting
    client.received.clear()
    client.text("ab")  # the latest job is kept until the next one
    gc.collect()
    assert [job() for job in left] == [None] * 5


def test_a_large_request_does_not_keep_others_waiting(client):
    large = client.submit("ab", n=40, max_tokens=200)
    assert len(client.text("ab", max_tokens=30)) == 30
    assert large.n_unfinished > 20
    client.leave(large)


def test_too_many_texts_are_refused(client):
    large = client.submit("ab", n=44, max_tokens=1_000)
    with pytest.raises(ApiError, match="44 texts are running or queued") as refused:
        client.submit("ab")
    assert refused.value.status == 429
    with pytest.raises(ApiError, match="prompts times n is 45; this server takes 44") as refused:
        client.submit("ab", n=45)
    assert (refused.value.status, refused.value.param) == (400, "n")
    client.leave(large)
    assert client.text("ab")


@pytest.mark.parametrize("function", ["prefill", "decode"])
def test_a_failure_ends_what_is_under_way_and_nothing_else(client, monkeypatch, function):
    expected = client.text("abc", seed=1)

    def fail(*args: object) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(Batch, function, fail)
        error = client.error(client.submit("ab", max_tokens=100))
    assert error.status == 500
    assert str(error) == "the model failed: RESOURCE_EXHAUSTED: out of memory"
    client.leave()
    assert client.text("abc", seed=1) == expected


@pytest.mark.parametrize("body", [{}, {"echo": True, "logprobs": 1, "max_tokens": 0}])
def test_a_model_that_computes_no_numbers_writes_no_text(lm, body):
    params = jax.tree.map(lambda p: p * np.nan, lm.params)
    with running(dataclasses.replace(lm, params=params), max_queue=5) as client:
        error = client.error(client.submit("ab", **body))
        assert (error.status, str(error)) == (500, "the model failed: its logits are not numbers")


def test_the_end_ends_all(lm):
    with running(lm, max_queue=5) as client:
        jobs = [client.submit("ab", max_tokens=10_000) for _ in range(3)]
        end = ApiError("shutting down", status=503)
        client.engine.end(end)
        assert [client.error(job) for job in jobs] == [end] * 3
        with pytest.raises(ApiError, match="shutting down"):
            client.submit("ab")


def test_a_job_that_comes_just_before_the_end_ends_too(lm):
    with running(lm, max_queue=5) as client:
        request = parse_completion(b'{"prompt": "ab"}', lm.tokenizer, "m")
        late = []

        def submit_and_end(piece: object) -> None:  # in the thread of the engine
            if not late:
                late.append(client.submit("ab"))
                client.engine.end(ApiError("shutting down", status=503))

        client.engine.submit(request, submit_and_end)
        client.engine.join()
        assert str(client.error(late[0])) == "shutting down"


@pytest.mark.slow
def test_everything_is_compiled_at_the_start():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: compiled.append(event) if "backend_compile" in event else None
    )
    lm = make_model(block_size=24)
    engine = Engine(lm, max_batch=4, max_queue=100)
    engine.start(warm_up=True)
    assert compiled
    compiled.clear()
    client = Client(engine, lm)
    jobs = [
        client.submit(p, n=k, max_tokens=50, **o) for p in PROMPTS for o in OPTIONS for k in (1, 2)
    ]
    jobs.append(client.submit("abc" * 50, echo=True, logprobs=1))
    for job in jobs:
        client.pieces(job)
    engine.end(ApiError("over", status=503))
    engine.join()
    assert compiled == []
