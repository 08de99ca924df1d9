"""Requests in the shape of OpenAI's `/v1/completions`, checked and turned into ids and options.

The extensions are `top_k`, `noise_offset`, and `logprobs` up to the size of the vocabulary.
"""

import json
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.errors import UserError
from shakegpt_jax.serving.api_error import ApiError
from shakegpt_jax.serving.fields import Fields, shorten, show

# Bounds of one request.
MAX_BODY = 2**20  # bytes
MAX_TEXTS = 128  # prompts times n
MAX_PROMPT = 50_000  # characters of all prompts, as often as n repeats them
MAX_NEW = 10_000  # characters of one text
MAX_LOG_PROBS = 2**20  # log-probabilities of one answer
MAX_STOPS, MAX_STOP = 4, 100  # stop strings, and characters of one
MAX_TEMPERATURE = 1e6
MAX_NOISE_OFFSET = 2**30

_DEFAULT_NEW = 16


class CompletionRequest(NamedTuple):
    """A parsed request: `n` texts for each prompt, their options and the shape of the answer."""

    prompts: list[np.ndarray]  # ids of each, at least one
    n: int
    seed: int
    max_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None  # 1, the default of the API, is None: nothing is left out
    noise_offset: int
    logprobs: int | None
    stop: list[str]
    echo: bool
    stream: bool
    include_usage: bool

    @property
    def n_text(self) -> int:
        """Number of texts in the answer."""
        return len(self.prompts) * self.n

    def sample_seed(self, sample: int) -> int:
        """Return the seed of one of the `n` texts: the first has the seed of the request."""
        if sample == 0:
            return self.seed
        return int(np.random.SeedSequence([self.seed, sample]).generate_state(1)[0])


def parse_json(body: bytes) -> dict[str, Any]:
    """Return the JSON object in the body of a request.

    Raises:
        ApiError: if it is not one.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ApiError(f"the body is not JSON: {shorten(reason)}") from error
    if not isinstance(value, dict):
        raise ApiError(f"the body is {show(value)}; it must be a JSON object")
    return value


def parse_completion(
    body: dict[str, Any], tokenizer: CharTokenizer, model_name: str
) -> CompletionRequest:
    """Check the body of a completion request.

    Null means the default everywhere. Fields that this model has no use for are accepted with
    values that change nothing.

    Args:
        body: the JSON object.
        tokenizer: of the model.
        model_name: the name that the model is served under.

    Raises:
        ApiError: naming the field, what was given and what would be right.
    """
    fields = Fields(body)
    if "model" in fields and (model := fields.take("model")) != model_name:
        message = f"the model {show(model)} is not served here; use {model_name!r}"
        raise ApiError(message, status=404, param="model", code="model_not_found")
    for name, is_neutral in _NEUTRAL.items():
        if name in fields and not is_neutral(value := fields.take(name)):
            raise ApiError(
                f"{name} is {show(value)}; this model has no {name}: leave it out", param=name
            )
    n = fields.integer("n", 1, 1, MAX_TEXTS)
    if (best_of := fields.integer("best_of", n, 1, MAX_TEXTS)) != n:
        raise ApiError(f"best_of is {best_of}; it must be equal to n ({n})", param="best_of")
    echo, stream = fields.boolean("echo"), fields.boolean("stream")
    top_p = fields.number("top_p", 1.0, 0, 1, positive=True)
    request = CompletionRequest(
        prompts=_prompts(fields.take("prompt"), tokenizer),
        n=n,
        seed=fields.integer("seed", secrets.randbits(32), 0, 2**32 - 1),
        max_tokens=fields.integer("max_tokens", _DEFAULT_NEW, 0, MAX_NEW, positive=not echo),
        temperature=fields.number("temperature", 1.0, 0, MAX_TEMPERATURE),
        top_k=fields.integer("top_k", None, 1, 2**31 - 1),
        top_p=None if top_p == 1 else top_p,
        noise_offset=fields.integer("noise_offset", 0, 0, MAX_NOISE_OFFSET),
        logprobs=fields.integer("logprobs", None, 0, tokenizer.vocab_size),
        stop=_stops(fields.take("stop")),
        echo=echo,
        stream=stream,
        include_usage=_include_usage(fields.take("stream_options"), stream),
    )
    fields.finish()
    _check_size(request)
    return request


def _check_size(request: CompletionRequest) -> None:
    if request.n_text > MAX_TEXTS:
        message = f"prompts times n is {request.n_text}; it must be at most {MAX_TEXTS}"
        raise ApiError(message, param="n" if request.n > 1 else "prompt")
    n_prompt = request.n * sum(map(len, request.prompts))
    if n_prompt > MAX_PROMPT:
        message = f"the prompts have {n_prompt} characters in all; at most {MAX_PROMPT} are allowed"
        raise ApiError(message, param="prompt", code="context_length_exceeded")
    if request.logprobs is not None:
        n_character = request.n_text * request.max_tokens + (n_prompt if request.echo else 0)
        if (total := n_character * (request.logprobs + 1)) > MAX_LOG_PROBS:
            message = f"the answer would hold {total} log-probabilities, at most {MAX_LOG_PROBS}"
            raise ApiError(f"{message} are allowed: lower logprobs or max_tokens", param="logprobs")


def _is_zero(value: Any) -> bool:
    return type(value) in (int, float) and value == 0


# Fields of the OpenAI API that are accepted if they change nothing.
_NEUTRAL: dict[str, Callable[[Any], bool]] = {
    "frequency_penalty": _is_zero,
    "presence_penalty": _is_zero,
    "logit_bias": lambda value: value == {},
    "suffix": lambda value: value == "",
    "user": lambda value: isinstance(value, str),
}


def _prompts(value: Any, tokenizer: CharTokenizer) -> list[np.ndarray]:
    several = isinstance(value, list) and not all(type(each) is int for each in value)
    given = value if several else [value]
    if len(given) > MAX_TEXTS:
        raise ApiError(f"there are {len(given)} prompts; at most {MAX_TEXTS}", param="prompt")
    return [_encode(each, tokenizer) for each in given]


def _encode(prompt: Any, tokenizer: CharTokenizer) -> np.ndarray:
    """Return the ids of a prompt, a text or a list of ids."""
    right = "a text, a list of ids, or a list of those"
    are_ids = isinstance(prompt, list) and all(type(each) is int for each in prompt)
    if not isinstance(prompt, str) and not are_ids:
        given = "missing" if prompt is None else show(prompt)
        raise ApiError(f"prompt is {given}; it must be {right}", param="prompt")
    if not prompt:
        raise ApiError("a prompt is empty; it must have 1 character or more", param="prompt")
    if len(prompt) > MAX_PROMPT:
        message = f"a prompt has {len(prompt)} characters; at most {MAX_PROMPT} are allowed"
        raise ApiError(message, param="prompt", code="context_length_exceeded")
    if isinstance(prompt, str):
        try:
            return tokenizer.encode(prompt)
        except UserError as error:
            raise ApiError(f"the prompt has characters {error}", param="prompt") from error
    if bad := [each for each in prompt if not 0 <= each < tokenizer.vocab_size]:
        right = f"ids are from 0 to {tokenizer.vocab_size - 1}"
        raise ApiError(f"the prompt has the id {show(bad[0])}; {right}", param="prompt")
    return np.array(prompt, np.min_scalar_type(tokenizer.vocab_size - 1))


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    right = f"a text or a list of up to {MAX_STOPS} texts, of 1 to {MAX_STOP} characters each"
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise ApiError(f"stop is {show(value)}; it must be {right}", param="stop")
    for stop in stops:
        if not isinstance(stop, str) or not 1 <= len(stop) <= MAX_STOP:
            raise ApiError(f"stop has {show(stop)}; it must be {right}", param="stop")
    return stops


def _include_usage(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        message = f"stream_options is {show(options)}; it must be an object"
        raise ApiError(message, param="stream_options")
    if not stream:
        raise ApiError("stream_options is only for stream: true", param="stream_options")
    fields = Fields(options)
    fields.boolean("include_obfuscation")  # nothing is obfuscated here
    include_usage = fields.boolean("include_usage")
    fields.finish()
    return include_usage
