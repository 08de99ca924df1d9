"""The server on a real port, with the clients that people use."""

import concurrent.futures
import contextlib
import gzip
import json
import math
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from test_commands import ROOT, environment, finish, start
from test_requests import NAMES, VALUES

import shakegpt_jax

openai = pytest.importorskip("openai", reason="needs pip install openai")
httpx = pytest.importorskip("httpx", reason="needs pip install httpx")
pytestmark = pytest.mark.slow


@contextlib.contextmanager
def serving(workdir: Path, *args: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start a server; yield its address and its process."""
    command = ("-m", "shakegpt_jax.serve", "--workdir", workdir, "--port=0", *args)
    with started(start(*command, cwd=workdir)) as server:
        yield server


@contextlib.contextmanager
def started(process: subprocess.Popen[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Wait until a server is ready; yield its address and its process."""
    try:
        address, lines = None, ""
        while address is None:
            line = process.stdout.readline()
            assert line, process.communicate()
            address = re.match(r"Open (http://\S+) \(Ctrl-C stops the server\)\n", line)
            lines += line
        assert re.search(r"\nCompiling for up to \d+ texts .*\nCompiled in \d+ s\.\n", "\n" + lines)
        yield address[1], process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def url(finished) -> Iterator[str]:
    with serving(finished, "--max_batch=16", "--max_queue=60", "--allow_host=bard.test") as (
        address,
        process,
    ):
        yield address
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        code, out, err = finish(process)
        assert (code, out, err) == (130, "Stopped.\n", "")


@pytest.fixture(scope="module")
def lm(finished) -> shakegpt_jax.LanguageModel:
    return shakegpt_jax.load(finished)


@pytest.fixture(scope="module")
def client(url) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def wait_until_quiet(url: str) -> None:
    deadline = time.monotonic() + 60
    while httpx.get(f"{url}/health").json()["texts"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def post(url: str, **body: object) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60)


def error_of(response: httpx.Response) -> str:
    """Return the message of an answer that is an error object."""
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    return response.json()["error"]["message"]


def test_the_openai_client_gets_what_generate_writes(client, lm):
    (model,) = client.models.list().data
    assert (model.id, client.models.retrieve(model.id)) == ("run", model)
    found = client.completions.create(
        model="run", prompt="First ", max_tokens=40, temperature=0.8, seed=3
    )
    (choice,) = found.choices
    assert "First " + choice.text == lm.generate("First ", 40, temperature=0.8, seed=3)
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert (found.object, found.model, choice.seed) == ("text_completion", "run", 3)
    usage = found.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (6, 40, 46)


def test_streams_add_up_to_the_whole(client):
    options = {"model": "run", "prompt": ["Fi", "To"], "n": 2, "max_tokens": 50, "seed": 1}
    options |= {"stop": ["e"], "logprobs": 2, "echo": True}
    whole = client.completions.create(**options)
    *chunks, last = client.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    )
    assert len({chunk.id for chunk in chunks}) == 1
    assert (last.choices, last.usage) == ([], whole.usage)
    for expected in whole.choices:
        parts = [c.choices[0] for c in chunks if c.choices[0].index == expected.index]
        assert "".join(part.text for part in parts) == expected.text
        *before, reason = [part.finish_reason for part in parts]
        assert (set(before), reason) == ({None}, expected.finish_reason)
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [item for part in parts for item in getattr(part.logprobs, name)]
            assert joined == getattr(expected.logprobs, name)
        assert "".join(expected.logprobs.tokens) == expected.text
        assert expected.logprobs.text_offset == list(range(len(expected.text)))
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]


def test_benchmarks_get_the_usage_so_far(url):
    body = {"prompt": "First", "max_tokens": 40, "stream": True, "ignore_eos": True}  # guidellm
    body |= {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    body |= {"repetition_penalty": 1.0, "logprobs": None, "temperature": 0.0}  # vLLM's
    *chunks, done = read_events(iter(post(url, **body).text.splitlines()))
    chunks, length = [json.loads(chunk) for chunk in chunks], 0
    for chunk in chunks:
        length += sum(len(choice["text"]) for choice in chunk["choices"])
        assert (chunk["usage"]["prompt_tokens"], chunk["usage"]["completion_tokens"]) == (5, length)
    assert (length, chunks[-1]["choices"], done) == (40, [], "[DONE]")


def test_lm_eval_can_score(client, lm):
    text = "First Citizen:\nBefore we proceed any further"
    options = {"model": "run", "prompt": lm.tokenizer.encode(text).tolist(), "echo": True}
    found = client.completions.create(**options, max_tokens=1, logprobs=1, temperature=0, seed=1234)
    log_probs = found.choices[0].logprobs
    stride = 5  # of a window of 8
    expected = lm.score(text, stride=stride)
    assert log_probs.token_logprobs[0] is None
    assert log_probs.token_logprobs[1:-1] == pytest.approx(expected.tolist(), abs=1e-4)
    alone = client.completions.create(**options, max_tokens=0, logprobs=1).choices[0].logprobs
    assert alone.token_logprobs == log_probs.token_logprobs[:-1]
    best = log_probs.top_logprobs[-1]
    assert best[log_probs.tokens[-1]] == max(best.values())


def test_the_whole_vocabulary_can_be_seen(url, lm):
    n = lm.tokenizer.vocab_size
    found = post(url, prompt="Fi", max_tokens=3, logprobs=n, seed=1).json()
    for distribution in found["choices"][0]["logprobs"]["top_logprobs"]:
        assert set(distribution) == set(lm.tokenizer.vocabulary)
        assert sum(map(math.exp, distribution.values())) == pytest.approx(1, abs=1e-3)


def test_50_streams_at_once_get_their_own_texts(client, lm):
    def stream(i: int) -> str:
        chunks = client.completions.create(
            model="run",
            prompt="First Citizen"[: 1 + i % 13],
            max_tokens=100 + i,
            seed=i,
            temperature=i % 3,
            top_p=[None, 0.9][i % 2],
            extra_body={"top_k": [-1, 3, 10][i % 3], "min_p": [0, 0.1][i // 2 % 2]},
            stream=True,
        )
        return "".join(chunk.choices[0].text for chunk in chunks)

    with concurrent.futures.ThreadPoolExecutor(50) as threads:
        found = list(threads.map(stream, range(50)))
    for i, text in enumerate(found):
        prompt = "First Citizen"[: 1 + i % 13]
        options = {"temperature": i % 3, "seed": i}
        options |= {"top_p": [None, 0.9][i % 2], "top_k": [None, 3, 10][i % 3]}
        options |= {"min_p": [None, 0.1][i // 2 % 2]}
        assert prompt + text == lm.generate(prompt, 100 + i, **options)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(url, stream):
    # Far more characters than can be written until the deadline.
    body = {"prompt": "Fi", "n": 70, "max_tokens": 10_000, "stream": stream}
    with (
        contextlib.suppress(httpx.ReadTimeout),
        httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=0.5) as response,
    ):
        assert response.status_code == 200
        next(response.iter_lines())
    wait_until_quiet(url)


def send(url: str, head: str, body: bytes = b"") -> socket.socket:
    """Send raw bytes to the server."""
    connection = socket.create_connection((httpx.URL(url).host, httpx.URL(url).port), timeout=30)
    connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n" + body)
    return connection


def answer_to(connection: socket.socket) -> tuple[int, bytes]:
    """Return the status and the rest of an answer, up to the end of the connection."""
    with connection:
        parts = []
        while part := connection.recv(2**16):
            parts.append(part)
    answer = b"".join(parts)
    return int(answer.split()[1]), answer


def raw_post(url: str, body: bytes, *headers: str, path: str = "/v1/completions") -> socket.socket:
    lines = [f"POST {path} HTTP/1.1", f"Content-Length: {len(body)}", "Connection: close"]
    if not any(header.startswith("Host:") for header in headers):
        lines.append(f"Host: {httpx.URL(url).netloc.decode()}")
    return send(url, "\n".join((*lines, *headers)) + "\n", body)


def test_a_slow_reader_slows_nobody_and_gets_all(url, lm):
    body = {"prompt": "Fi", "max_tokens": 3_000, "stream": True, "seed": 1}
    body |= {"logprobs": lm.tokenizer.vocab_size}
    readers = [raw_post(url, json.dumps(body).encode()) for _ in range(8)]
    while httpx.get(f"{url}/health").json()["texts"] < 8:
        time.sleep(0.01)
    while httpx.get(f"{url}/health").json()["texts"]:
        assert len(post(url, prompt="To", max_tokens=20).json()["choices"][0]["text"]) == 20
    for reader in readers:
        status, answer = answer_to(reader)
        assert status == 200 and answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert answer.count(b'"finish_reason":"length"') == 1


def test_a_full_queue_is_answered_with_429(client, url):
    with pytest.raises(openai.BadRequestError, match="n is 77; this server takes 76 at a time"):
        client.completions.create(model="run", prompt="Fi", n=77)
    body = {"prompt": "Fi", "n": 76, "max_tokens": 10_000, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as full:
        lines = full.iter_lines()
        next(lines)
        with pytest.raises(openai.RateLimitError, match="try again later") as refused:
            client.completions.create(model="run", prompt="Fi")
    assert refused.value.response.headers["retry-after"] == "2"
    assert refused.value.body["type"] == "rate_limit_error"
    wait_until_quiet(url)


def test_bad_requests_raise_the_errors_of_the_client(client):
    with pytest.raises(openai.BadRequestError, match="not in the vocabulary of") as refused:
        client.completions.create(model="run", prompt="né")
    assert refused.value.param == "prompt"
    with pytest.raises(openai.NotFoundError, match="is not served here") as refused:
        client.completions.create(model="gpt-3.5-turbo-instruct", prompt="a")
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.models.retrieve("x")


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:1", None, 200),
        ("LOCALHOST", None, 200),
        ("[::1]:99", None, 200),
        ("bard.test", None, 200),
        ("bard.test:x", None, 400),
        ("evil.test", None, 421),
        ("a@127.0.0.1", None, 400),
        ("127.0.0.1/x", None, 400),
        ("127.0.0.1.evil.test", None, 421),
        ("", None, 400),
        ("192.168.1.1", None, 421),
        ("localhost:1", "http://localhost:1", 200),
        ("localhost:1", "https://localhost:1", 200),
        ("localhost:1", "http://localhost:2", 403),
        ("localhost:1", "http://evil.test", 403),
        ("localhost:1", "null", 403),
    ],
)
def test_only_requests_for_this_server_are_answered(url, host, origin, status):
    headers = [f"Host: {host}"] + [f"Origin: {origin}"] * (origin is not None)
    found, answer = answer_to(raw_post(url, b'{"prompt": "a", "max_tokens": 1}', *headers))
    assert found == status
    assert (b'{"error":' in answer) == (status != 200)
    assert b"access-control" not in answer.lower()


def test_all_answers_have_the_headers_that_browsers_obey(url):
    answers = [
        httpx.get(url),
        httpx.get(f"{url}/health"),
        httpx.get(f"{url}/nothing"),
        post(url, prompt="a", max_tokens=1),
        post(url, prompt="a", max_tokens=2, stream=True),
        httpx.get(url, headers={"host": "evil.test"}),
    ]
    for answer in answers:
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert not {"set-cookie", "server"} & {*answer.headers}
        assert not [name for name in answer.headers if name.startswith("access-control")]
    encodings = [answer.headers.get("content-encoding") for answer in answers]
    assert encodings == ["gzip", None, None, None, None, None]  # a stream is not kept back


# Values that this model takes, and texts that do not take long, where schemathesis has others.
HOOKS = """
import schemathesis

@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and "prompt" in body:
        for name, value in {"prompt": "First", "model": "run"}.items():
            if body.get(name) and isinstance(body[name], str):
                body[name] = value
        if type(body.get("max_tokens")) is int and 0 < body["max_tokens"] <= 10_000:
            body["max_tokens"] = 3
    return body
"""


def test_schemathesis_finds_nothing(url, tmp_path):
    pytest.importorskip("schemathesis", reason="needs pip install schemathesis")
    (tmp_path / "hooks.py").write_text(HOOKS)
    # Fields may contradict each other, such as n and best_of, which no schema says.
    check = "[checks.positive_data_acceptance]\nexpected-statuses = [200, 400, 404, 429]\n"
    (tmp_path / "schemathesis.toml").write_text(f'hooks = "hooks"\n{check}')
    run = (sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json")
    options = ("--phases=coverage,fuzzing", "--max-examples=25", "--seed=1")
    environ = environment(PYTHONPATH=str(tmp_path))
    found = subprocess.run([*run, *options], cwd=tmp_path, env=environ, capture_output=True)
    assert found.returncode == 0, found.stdout.decode()


def metrics_of(url: str) -> dict[str, float]:
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_metrics_count_texts_and_characters(url):
    before = metrics_of(url)
    post(url, prompt="First", n=2, max_tokens=30)
    after = metrics_of(url)
    for name, more in {"characters_total": 60, "first_character_seconds_count": 2}.items():
        assert after[f"shakegpt_{name}"] == before[f"shakegpt_{name}"] + more
    assert after["shakegpt_first_character_seconds_sum"] > 0
    body = {"prompt": "Fi", "n": 20, "max_tokens": 10_000, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()  # which ends the stream once it is forgotten
        next(lines)
        now = metrics_of(url)
        assert now["shakegpt_texts_running"] + now["shakegpt_texts_waiting"] == 20
    wait_until_quiet(url)
    now = metrics_of(url)
    assert now["shakegpt_texts_running"] == now["shakegpt_texts_waiting"] == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nothing", 404, "there is nothing at /nothing"),
        (
            "POST",
            "/v1/chat/completions",
            404,
            "there is nothing at /v1/chat/completions; this is a",
        ),
        ("GET", "/health/", 404, "there is nothing at /health/"),
        ("POST", "/v1/completions/", 404, "there is nothing at /v1/completions/"),
        ("GET", "/v1/completions", 405, "/v1/completions does not take GET"),
        ("DELETE", "/", 405, "/ does not take DELETE"),
        ("OPTIONS", "/v1/completions", 405, "/v1/completions does not take OPTIONS"),
    ],
)
def test_other_routes_are_answered_with_errors(url, method, path, status, message):
    answer = httpx.request(method, url + path)
    assert (answer.status_code, error_of(answer)[: len(message)]) == (status, message)
    assert ("allow" in answer.headers) == (status == 405)


def test_large_bodies_are_refused_before_they_are_read(url):
    for path in ("/v1/completions", "/v1/verbatim", "/"):
        host = httpx.URL(url).netloc.decode()
        head = f"POST {path} HTTP/1.1\nHost: {host}\nContent-Length: 99999999999\n"
        status, answer = answer_to(send(url, head))
        assert (status, b"the body has more than 1048576 bytes" in answer) == (413, True)

    head = f"POST /v1/completions HTTP/1.1\nHost: {host}\nConnection: close\n"
    chunks = (b"10000\r\n" + b" " * 2**16 + b"\r\n") * 17
    status, answer = answer_to(send(url, f"{head}Transfer-Encoding: chunked\n", chunks))
    assert (status, b"the body has more than 1048576 bytes" in answer) == (413, True)
    assert post(url, prompt="a").status_code == 200


def test_verbatim_text_is_found_in_the_training_text(url, lm, text):
    copied = text[1_000:1_060]
    answer = httpx.post(f"{url}/v1/verbatim", json={"text": f"abc {copied} xyz"}, timeout=60)
    (stretch,) = answer.json()["stretches"]
    assert answer.json()["shortest"] == 20
    assert stretch["start"] <= 4 and stretch["end"] >= 64
    place, length = stretch["place"], stretch["end"] - stretch["start"]
    assert f"abc {copied} xyz"[stretch["start"] : stretch["end"]] == text[place : place + length]
    assert stretch["before"] == text[place - 60 : place]
    assert stretch["after"] == text[place + length : place + length + 60]


def test_too_many_searches_are_refused(url):
    with concurrent.futures.ThreadPoolExecutor(40) as threads:
        body = {"text": "First Citizen, " * 1_300}
        search = lambda _: httpx.post(f"{url}/v1/verbatim", json=body, timeout=60)  # noqa: E731
        answers = list(threads.map(search, range(40)))
    assert {answer.status_code for answer in answers} == {200, 429}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/verbatim"])
def test_encoded_bodies_are_refused(url, path):
    body = gzip.compress(b'{"prompt": "a"}')
    for headers in ([("content-encoding", "gzip")], [("content-encoding", "identity")] * 2):
        headers = [*headers, ("content-encoding", "gzip")]
        answer = httpx.post(url + path, content=body, headers=headers)
        assert (answer.status_code, "Content-Encoding is gzip" in answer.text) == (415, True)
    body = {"prompt": "a"} if path == "/v1/completions" else {"text": "a"}
    identity = {"content-encoding": "identity"}
    assert httpx.post(url + path, json=body, headers=identity).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_the_stop_string_that_is_complete_first_ends_a_text(client, lm, stream):
    options = {"prompt": "First ", "max_tokens": 40, "temperature": 0.8, "seed": 3}
    whole = lm.generate(**{"prompt": "First ", "max_new_tokens": 40, "temperature": 0.8, "seed": 3})
    whole = whole.removeprefix("First ")
    long, short = whole[10:22], whole[14:18]
    found = client.completions.create(model="run", **options, stop=[long, short], stream=stream)
    chunks = found if stream else [found]
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert text == whole[: whole.index(short)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["/v1/completions", "/v1/verbatim"]),
    st.dictionaries(st.sampled_from([*NAMES, "text"]) | st.text(), VALUES).map(json.dumps)
    | st.text()
    | st.builds(
        lambda **body: json.dumps({"prompt": "First", "max_tokens": 3, **body}),
        logprobs=st.none() | st.integers(0, 80),
        n=st.integers(0, 4),
        echo=st.booleans(),
        stream=st.booleans(),
        temperature=st.floats(0, 1e6),
        top_p=st.floats(),
        top_k=st.none() | st.integers(0, 2**40),
        stop=VALUES,
    ),
)
def test_no_request_is_answered_with_500(url, path, body):
    answer = httpx.post(url + path, content=body.encode("utf-8", "surrogatepass"), timeout=60)
    assert answer.status_code in (200, 400, 404)
    if answer.status_code != 200:
        assert error_of(answer)


def read_events(lines: Iterator[str]) -> list[str]:
    return [line.removeprefix("data: ") for line in lines if line]


def test_sigterm_lets_texts_end(finished):
    with serving(finished, "--max_batch=1") as (url, process):
        body = {"prompt": "Fi", "max_tokens": 1_500, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.terminate()
            *_, last, done = read_events(lines)
        assert (json.loads(last)["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
        code, out, err = finish(process)
        assert (code, out, err) == (143, "Stopped.\n", "")


def test_sigterm_ends_texts_after_the_grace_period(finished):
    with serving(finished, "--max_batch=1", "--grace=0") as (url, process):
        body = {"prompt": "Fi", "n": 100, "max_tokens": 10_000}
        with (
            concurrent.futures.ThreadPoolExecutor(1) as thread,
            httpx.stream(
                "POST", f"{url}/v1/completions", json=body | {"stream": True}, timeout=60
            ) as response,
        ):
            whole = thread.submit(post, url, **body)
            lines = response.iter_lines()
            next(lines)
            time.sleep(0.5)
            process.terminate()
            last = json.loads(read_events(lines)[-1])
            assert last["error"]["message"] == "the server is shutting down"
            assert whole.result().status_code == 503
            assert error_of(whole.result()) == "the server is shutting down"
        code, out, err = finish(process)
        assert (code, out, err) == (143, "Stopped.\n", "")


def test_half_of_a_body_does_not_hold_up_the_end(finished):
    with serving(finished, "--max_batch=1", "--grace=1") as (url, process):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\n"
            client.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            time.sleep(0.5)
            process.terminate()
            code, _, err = finish(process)
        assert code == 143
        assert "Traceback" not in err


def test_other_origins_and_all_addresses_can_be_allowed(finished):
    options = ("--max_batch=1", "--allow_origin=https://play.test", "--host=0.0.0.0")
    with serving(finished, *options) as (url, _):
        # All addresses are names of this server, but no other domain is.
        assert httpx.get(url, headers={"host": "192.168.1.1"}).status_code == 200
        assert httpx.get(url, headers={"host": "evil.test"}).status_code == 421
        origin = {"origin": "https://play.test"}
        preflight = {"access-control-request-method": "POST"}
        preflight["access-control-request-headers"] = "authorization,x-stainless-os"
        before = httpx.options(f"{url}/v1/completions", headers=origin | preflight)
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == "https://play.test"
        assert before.headers["access-control-allow-methods"] == "GET, POST"
        assert before.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "a"}, headers=origin)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://play.test"
        assert httpx.get(url, headers={"origin": "https://other.test"}).status_code == 403
        other = {"origin": "https://other.test"} | preflight
        assert httpx.options(url, headers=other).status_code == 403
        address = httpx.URL(url)
        code, out, err = finish(
            start("-m", "shakegpt_jax.serve", f"--port={address.port}", cwd=finished)
        )
        assert (code, out) == (2, "")
        assert err == (
            f"error: cannot listen on --host 127.0.0.1 --port {address.port}: "
            "Address already in use\n"
        )


def test_without_the_extra_it_says_what_to_install(finished):
    block = (
        "import sys; sys.modules['uvicorn'] = None; sys.argv = ['serve'];"
        "import runpy; runpy.run_module('shakegpt_jax.serve', run_name='__main__')"
    )
    process = subprocess.run(
        [sys.executable, "-c", block], env=environment(), capture_output=True, text=True
    )
    assert (process.returncode, process.stdout) == (2, "")
    expected = "error: this needs uvicorn: pip install 'shakegpt-jax[serve]'\n"
    assert process.stderr == expected


def measure_streams(url: str, count: int) -> tuple[float, float]:
    """Return the characters per second of streams, and the longest time to a first character."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    options = {"model": "model", "prompt": "O God, O God!", "max_tokens": 100, "stream": True}

    def stream(seed: int) -> tuple[int, float]:
        began, first, length = time.monotonic(), None, 0
        for chunk in client.completions.create(**options, seed=seed):
            first = first or time.monotonic() - began
            length += len(chunk.choices[0].text)
        return length, first

    with concurrent.futures.ThreadPoolExecutor(count) as threads:
        began = time.monotonic()
        lengths, firsts = zip(*threads.map(stream, range(count)), strict=True)
        return sum(lengths) / (time.monotonic() - began), max(firsts)


def test_50_streams_share_the_passes_of_a_large_model(tmp_path):
    quick = environment(JAX_DISABLE_MOST_OPTIMIZATIONS="0", XLA_FLAGS="")
    script = ROOT / "tests" / "serve_random_model.py"
    with started(start(script, cwd=tmp_path, env=quick)) as (url, _):
        measure_streams(url, 1)
        one, _ = measure_streams(url, 1)
        many, first = measure_streams(url, 50)
    print(f"{one:.0f} and {many:.0f} characters/s, first character within {first:.1f} s")
    assert many > 2 * one  # 7 on an idle machine
