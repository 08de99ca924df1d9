"""Requests in the shape of OpenAI's completions: what is understood, and what is refused."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.serving.answers import Failure
from shakegpt_jax.serving.api import (
    ApiError,
    CompletionBody,
    CompletionRequest,
    SearchRequest,
    parse,
    parse_completion,
)
from shakegpt_jax.serving.openapi import ApiRoute, describe_api

TOKENIZER = CharTokenizer("\n !abcé😀")


def parse_bytes(body: bytes) -> CompletionRequest:
    return parse_completion(body, TOKENIZER, "bard")


def parse_fields(**body: object) -> CompletionRequest:
    return parse_bytes(json.dumps({"prompt": "ab", **body}).encode())


def test_defaults_are_those_of_the_api():
    request = parse_fields()
    assert [ids.tolist() for ids in request.prompts] == [[3, 4]]
    defaults = {"n": 1, "max_tokens": 16, "temperature": 1.0, "top_p": 1.0, "noise_offset": 0}
    assert {name: getattr(request, name) for name in defaults} == defaults
    assert request.top_k is request.logprobs is None
    assert not (request.stop or request.echo or request.stream)
    assert len({parse_fields().seed for _ in range(5)}) > 1
    assert all(0 <= parse_fields(seed=None).seed < 2**32 for _ in range(5))


@pytest.mark.parametrize("prompt", ["é😀", [6, 7], ["é", [7, 7], "ab"], [[1]], ["a"]])
def test_prompts_are_texts_or_ids_or_lists_of_them(prompt):
    expected = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
    expected = [TOKENIZER.encode(p).tolist() if isinstance(p, str) else p for p in expected]
    assert [ids.tolist() for ids in parse_fields(prompt=prompt).prompts] == expected


@pytest.mark.parametrize(
    "neutral",
    [
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "store": False},
        {"repetition_penalty": 1.0, "min_tokens": 0, "priority": 0, "metadata": {}, "min_p": 0},
        {"ignore_eos": True, "skip_special_tokens": False, "stop_token_ids": [], "top_k": 0},
        {"suffix": None, "user": "me", "seed": None, "stop": None, "logprobs": None},
        {"n": 3, "best_of": 3},
        {"use_beam_search": False, "length_penalty": 1.0, "best_of": 1},  # vLLM's defaults
        {"best_of": None, "stream_options": None, "top_k": -1, "top_p": 1},
        {"model": "bard", "max_tokens": 7.0},
        {"stream": True, "stream_options": {"include_obfuscation": False, "include_usage": None}},
    ],
)
def test_values_that_change_nothing_are_accepted(neutral):
    request = parse_fields(**neutral)
    assert (request.top_k, request.top_p, request.min_p) == (None, 1, 0)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": None}, "prompt", "missing required field `prompt`"),
        ({"prompt": []}, "prompt", "prompt: Expected `array` of length >= 1"),
        ({"prompt": ["a", ""]}, "prompt", "prompt[1]: Expected `str` of length >= 1"),
        ({"prompt": [1, "a"]}, "prompt", "a prompt is 1, an id beside other prompts"),
        ({"prompt": [True]}, "prompt", "prompt[0]: Expected `int | str | array`, got `bool`"),
        ({"prompt": [8]}, "prompt", "the prompt has the id 8; ids are from 0 to 7"),
        ({"prompt": "aXbY"}, "prompt", "'X' at position 1, 'Y' at position 3"),
        ({"prompt": "\ud800"}, "prompt", "'\\ud800' at position 0"),
        ({"prompt": ["a" * 30_000] * 2}, "prompt", "have 60000 characters in all; at most 50000"),
        ({"prompt": ["a"] * 129}, "prompt", "prompts times n is 129; it must be at most 128"),
        ({"prompt": ["a"] * 100, "n": 2}, "n", "prompts times n is 200; it must be at most 128"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0; without echo it must be from 1"),
        ({"max_tokens": 10_001}, "max_tokens", "max_tokens is 10001: Expected `int` <= 10000"),
        ({"max_tokens": "5"}, "max_tokens", 'max_tokens is "5": Expected `int`, got `str`'),
        ({"best_of": 2}, "best_of", "best_of is 2; it must be equal to n (1)"),
        ({"temperature": 10**400}, "temperature", "Number out of range"),
        ({"top_p": 0}, "top_p", "top_p is 0: "),
        ({"logprobs": 9}, "logprobs", "logprobs is 9; it must be from 0 to 8"),
        (
            {"logprobs": 8, "max_tokens": 10_000, "n": 100},
            "logprobs",
            "the answer would hold 9000000 log-probabilities, at most 1048576 are allowed",
        ),
        ({"stop": ["a", ""]}, "stop", "stop[1]: Expected `str` of length >= 1"),
        (
            {"stream_options": {"include_usage": True}},
            "stream_options",
            "stream_options is only for stream: true",
        ),
        (
            {"stream_options": {"x": 1}},
            "stream_options",
            "stream_options: Object contains unknown field `x`",
        ),
        ({"frequency_penalty": 0.1}, "frequency_penalty", "is 0.1: only 0 is supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "logit_bias[...]: only {} is supported"),
        ({"repetition_penalty": 1.1}, "repetition_penalty", "is 1.1: only 1 is supported"),
        ({"store": True}, "store", "store is true: only false is supported"),
        ({"use_beam_search": True}, "use_beam_search", "is true: only false is supported"),
        ({"top_k": -2}, "top_k", "top_k is -2: Expected `int` >= -1"),
        ({"suffix": "x"}, "suffix", 'suffix is "x": '),
        ({"top_a": 0.1}, "top_a", "the body: Object contains unknown field `top_a`"),
        ({"x" * 1_000: 1}, "x" * 1_000, "x..."),
        ({"`": 1}, "`", "unknown field ```"),
        ({"x` - at `$.y": 1}, "y", "unknown field `x`"),
        ({"\ud800": 1}, None, "the body is not JSON: 'utf-8' codec can't encode"),
    ],
)
def test_what_is_wrong_is_named(body, param, message):
    with pytest.raises(ApiError) as refused:
        parse_fields(**body)
    assert message in str(refused.value)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert len(str(refused.value)) < 250


def test_another_model_is_not_found():
    with pytest.raises(ApiError, match="the model 'gpt-4' is not served here; use 'bard'") as no:
        parse_fields(model="gpt-4")
    assert no.value.status == 404
    assert json.loads(no.value.to_response().body)["error"] == {
        "message": str(no.value),
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (b"", "the body is not JSON: Expecting value", None),
        (b"\xff", "the body is not JSON: ", None),
        (b"[" * 100_000, "the body is not JSON: maximum recursion depth", None),
        (b"1" * 5_000, "the body is not JSON: ", None),
        (b'{"prompt": "a", "temperature": NaN}', "temperature is NaN: Expected", "temperature"),
        (b"[1]", "the body: Expected `object`, got `array`", None),
        (b'{"seed": 1, "prompt": "a", "seed": 2}', "the field 'seed' is given more than", "seed"),
        (b'{"prompt": "a", "seed": 1, "seed": null}', "the field 'seed' is given more t", "seed"),
        (
            b'{"prompt": "a", "stream": true, "stream_options": '
            b'{"include_usage": true, "include_usage": false}}',
            "the field 'include_usage' is given more than once",
            "include_usage",
        ),
    ],
)
def test_bodies_that_are_no_object_or_have_a_field_twice_are_refused(body, message, param):
    with pytest.raises(ApiError) as refused:
        parse_bytes(body)
    assert str(refused.value).startswith(message)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_bodies_at_the_limit_of_nesting_are_refused():
    for depth in range(850, 1_001):
        for name in ("prompt", "seed", "stop", "stream_options", "logit_bias", "other"):
            body = f'{{"prompt": "a", "{name}": {"[" * depth}{"]" * depth}}}'
            with pytest.raises(ApiError):
                parse_bytes(body.encode())


def test_samples_have_seeds_of_their_own():
    request = parse_fields(n=128, seed=7)
    seeds = [request.sample_seed(i) for i in range(128)]
    assert seeds[0] == 7
    assert len({seed for seed in seeds if 0 <= seed < 2**32}) == 128


NAMES = list(CompletionRequest.__struct_fields__)
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
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(), VALUES).map(json.dumps) | st.binary())
def test_any_body_is_understood_or_refused(body):
    body = body if isinstance(body, bytes) else body.encode()
    try:
        request = parse_bytes(body)
    except ApiError as error:
        assert error.status in (400, 404)
        assert json.loads(error.to_response().body)["error"]["message"]
    else:
        assert all(len(ids) and ids.max() < TOKENIZER.vocab_size for ids in request.prompts)
        assert np.isfinite(request.temperature)


def test_the_description_of_the_api_is_that_of_its_types():
    route = ApiRoute("/x", test_defaults_are_those_of_the_api, takes=CompletionBody, gives=Failure)
    api = json.loads(json.dumps(describe_api("bard", [route])))
    assert "the model bard" in api["info"]["description"]
    body = api["components"]["schemas"]["CompletionBody"]
    assert {*body["properties"]} == {*CompletionBody.__struct_fields__}
    choices = [{"type": "integer", "minimum": 1, "maximum": 128}, {"type": "null"}]
    assert body["properties"]["n"] == {"anyOf": choices, "default": 1}
    assert {"type": "null"} not in body["properties"]["prompt"]["anyOf"]
    references = re.findall('"#/components/schemas/(.*?)"', json.dumps(api))
    assert {*references} <= {*api["components"]["schemas"]}


@pytest.mark.parametrize(
    ("body", "param"),
    [({}, "text"), ({"text": "a" * 20_001}, "text"), ({"text": "a", "n": 1}, "n")],
)
def test_bad_searches_are_refused(body, param):
    with pytest.raises(ApiError) as refused:
        parse(json.dumps(body).encode(), SearchRequest)
    assert refused.value.param == param
