"""Requests in the shape of OpenAI's completions: what is understood, and what is refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.serving.api_error import ApiError, error_response
from shakegpt_jax.serving.requests import CompletionRequest, parse_completion, parse_json

TOKENIZER = CharTokenizer("\n !abcé😀")


def parse(**body: object) -> CompletionRequest:
    return parse_completion({"prompt": "ab", **body}, TOKENIZER, "bard")


def test_defaults_are_those_of_the_api():
    request = parse()
    assert [ids.tolist() for ids in request.prompts] == [[3, 4]]
    assert request._replace(prompts=[], seed=0) == CompletionRequest(
        prompts=[],
        n=1,
        seed=0,
        max_tokens=16,
        temperature=1.0,
        top_k=None,
        top_p=None,
        noise_offset=0,
        logprobs=None,
        stop=[],
        echo=False,
        stream=False,
        include_usage=False,
    )
    assert len({parse().seed for _ in range(5)}) > 1
    assert all(0 <= parse(seed=None).seed < 2**32 for _ in range(5))


@pytest.mark.parametrize("prompt", ["é😀", [6, 7], ["é", [7, 7], "ab"], [[1]], ["a"]])
def test_prompts_are_texts_or_ids_or_lists_of_them(prompt):
    expected = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
    expected = [TOKENIZER.encode(p).tolist() if isinstance(p, str) else p for p in expected]
    assert [ids.tolist() for ids in parse(prompt=prompt).prompts] == expected


@pytest.mark.parametrize(
    "neutral",
    [
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}},
        {"suffix": None, "user": "me", "seed": None, "stop": None, "logprobs": None},
        {"n": 3, "best_of": 3},
        {"best_of": None, "stream_options": None, "top_k": None, "top_p": 1},
        {"model": "bard", "max_tokens": 7.0},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
    ],
)
def test_values_that_change_nothing_are_accepted(neutral):
    assert parse(**neutral).top_p is None


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": None}, "prompt", "prompt is missing; it must be a text, a list of ids"),
        ({"prompt": ""}, "prompt", "a prompt is empty; it must have 1 character or more"),
        ({"prompt": ["a", ""]}, "prompt", "a prompt is empty"),
        ({"prompt": []}, "prompt", "a prompt is empty"),
        ({"prompt": {"a": 1}}, "prompt", 'prompt is {"a": 1}; it must be'),
        ({"prompt": [True]}, "prompt", "prompt is true; it must be"),
        ({"prompt": [8]}, "prompt", "the prompt has the id 8; ids are from 0 to 7"),
        ({"prompt": [[-1]]}, "prompt", "the prompt has the id -1; ids are from 0 to 7"),
        ({"prompt": "aXbY"}, "prompt", "'X' at position 1, 'Y' at position 3"),
        ({"prompt": "\ud800"}, "prompt", "'\\ud800' at position 0"),
        ({"prompt": "a" * 50_001}, "prompt", "a prompt has 50001 characters; at most 50000"),
        ({"prompt": ["a" * 30_000] * 2}, "prompt", "have 60000 characters in all; at most 50000"),
        ({"prompt": ["a"] * 129}, "prompt", "there are 129 prompts; at most 128"),
        ({"prompt": ["a"] * 100, "n": 2}, "n", "prompts times n is 200; it must be at most 128"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0; it must be from 1 to 10000"),
        ({"max_tokens": 10_001}, "max_tokens", "max_tokens is 10001; it must be from 1 to 10000"),
        ({"max_tokens": "5"}, "max_tokens", 'max_tokens is "5"; it must be a whole number from 1'),
        ({"max_tokens": 1.5}, "max_tokens", "max_tokens is 1.5; it must be a whole number"),
        ({"max_tokens": True}, "max_tokens", "max_tokens is true; it must be a whole number"),
        ({"n": 0}, "n", "n is 0; it must be from 1 to 128"),
        ({"best_of": 2}, "best_of", "best_of is 2; it must be equal to n (1)"),
        ({"temperature": -1}, "temperature", "temperature is -1; it must be from 0 to 1e+06"),
        ({"temperature": float("nan")}, "temperature", "temperature is NaN; it must be from 0"),
        ({"temperature": 10**400}, "temperature", "it must be from 0 to 1e+06"),
        ({"top_p": 0}, "top_p", "top_p is 0; it must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p", "top_p is 1.1; it must be above 0 and at most 1"),
        ({"top_k": 0}, "top_k", "top_k is 0; it must be from 1 to 2147483647"),
        ({"seed": -1}, "seed", "seed is -1; it must be from 0 to 4294967295"),
        ({"seed": 2**32}, "seed", "it must be from 0 to 4294967295"),
        ({"noise_offset": -1}, "noise_offset", "noise_offset is -1; it must be from 0 to"),
        ({"logprobs": 9}, "logprobs", "logprobs is 9; it must be from 0 to 8"),
        ({"logprobs": True}, "logprobs", "logprobs is true; it must be a whole number"),
        (
            {"logprobs": 8, "max_tokens": 10_000, "n": 100},
            "logprobs",
            "the answer would hold 9000000 log-probabilities, at most 1048576 are allowed",
        ),
        ({"stop": ["a"] * 5}, "stop", "it must be a text or a list of up to 4 texts"),
        ({"stop": ""}, "stop", 'stop has ""; it must be'),
        ({"stop": [1]}, "stop", "stop has 1; it must be"),
        ({"stop": "a" * 101}, "stop", "of 1 to 100 characters each"),
        ({"stop": 3}, "stop", "stop is 3; it must be"),
        ({"echo": 1}, "echo", "echo is 1; it must be true or false"),
        ({"stream": "no"}, "stream", 'stream is "no"; it must be true or false'),
        ({"stream_options": {}}, "stream_options", "stream_options is only for stream: true"),
        ({"stream_options": []}, "stream_options", "stream_options is []; it must be an object"),
        ({"frequency_penalty": 0.1}, "frequency_penalty", "frequency_penalty is 0.1; this model"),
        ({"logit_bias": {"5": 1}}, "logit_bias", 'logit_bias is {"5": 1}; this model has no'),
        ({"suffix": "x"}, "suffix", 'suffix is "x"; this model has no suffix: leave it out'),
        ({"min_p": 0.1}, "min_p", 'the field "min_p" is not known here: leave it out'),
        ({"x" * 1_000: 1}, "x" * 1_000, "x..."),
    ],
)
def test_what_is_wrong_is_named(body, param, message):
    with pytest.raises(ApiError) as refused:
        parse(**body)
    assert message in str(refused.value)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert len(str(refused.value)) < 250


def test_another_model_is_not_found():
    with pytest.raises(ApiError, match="the model \"gpt-4\" is not served here; use 'bard'") as no:
        parse(model="gpt-4")
    assert no.value.status == 404
    assert no.value.to_json()["error"] == {
        "message": str(no.value),
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not JSON: Expecting value"),
        (b"\xff", "the body is not JSON: "),
        (b"[" * 100_000, "the body is not JSON: nested too deeply"),
        (b"1" * 5_000, "the body is not JSON: "),
        (b"[1]", "the body is [1]; it must be a JSON object"),
    ],
)
def test_bodies_that_are_no_object_are_refused(body, message):
    with pytest.raises(ApiError) as refused:
        parse_json(body)
    assert str(refused.value).startswith(message)


def test_bodies_at_the_limit_of_nesting_are_refused():
    for depth in range(850, 1_001):
        for name in ("prompt", "seed", "stop", "stream_options", "other"):
            body = f'{{"prompt": "a", "{name}": {"[" * depth}{"]" * depth}}}'
            with pytest.raises(ApiError):
                parse_completion(parse_json(body.encode()), TOKENIZER, "bard")


def test_errors_can_name_what_is_not_unicode():
    with pytest.raises(ApiError) as refused:
        parse(**{"\ud800": 1})
    body = json.loads(error_response(refused.value).body)
    assert body["error"]["param"] == "\ud800"


def test_samples_have_seeds_of_their_own():
    request = parse(n=128, seed=7)
    seeds = [request.sample_seed(i) for i in range(128)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 128
    assert all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds)


NAMES = [*CompletionRequest._fields, "prompt", "best_of", "user", "suffix", "logit_bias", "model"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 5)
    | st.floats()
    | st.text(TOKENIZER.vocabulary)
    | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(), VALUES))
def test_any_object_is_understood_or_refused(body):
    try:
        request = parse_completion(parse_json(json.dumps(body).encode()), TOKENIZER, "bard")
    except ApiError as error:
        assert error.status in (400, 404)
        json.dumps(error.to_json())
    else:
        assert all(len(ids) and ids.max() < TOKENIZER.vocab_size for ids in request.prompts)
        assert np.isfinite(request.temperature)


@settings(max_examples=100, deadline=None)
@given(st.binary())
def test_any_body_is_an_object_or_refused(body):
    try:
        assert isinstance(parse_json(body), dict)
    except ApiError as error:
        assert error.status == 400
