"""Requests in the shape of OpenAI's `/v1/completions`, their limits, and errors.

The extensions are `top_k`, `min_p`, `noise_offset`, and `logprobs` up to the vocabulary's size.
"""

import json
import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from starlette.responses import Response

from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.errors import UserError
from shakegpt_jax.serving.answers import Failure, Problem
from shakegpt_jax.web.prompt_page import LIMITS

# Limits of one request.
MAX_BODY = 2**20  # bytes
MAX_TEXTS = 128  # prompts times n
MAX_PROMPT = LIMITS["text"]  # characters of all prompts, each counted n times
MAX_NEW = LIMITS["length"]
MAX_LOG_PROBS = LIMITS["log_probs"]

_KINDS = {403: "permission_error", 429: "rate_limit_error", 500: "server_error"}

T = TypeVar("T")


class ApiError(Exception):
    """A request that is answered with an error: a message for people, and fields for clients."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def to_json(self) -> bytes:
        """Return the error object of the OpenAI API, in ASCII: it may name lone surrogates."""
        kind = _KINDS.get(min(self.status, 500), "invalid_request_error")
        failure = Failure(Problem(str(self), kind, self.param, self.code))
        return json.dumps(msgspec.to_builtins(failure)).encode()

    def to_response(self, headers: Mapping[str, str] | None = None) -> Response:
        """Return the HTTP answer."""
        if self.status in (429, 503):
            headers = {"retry-after": "2"}  # seconds
        return Response(self.to_json(), self.status, headers, media_type="application/json")


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Contents of a stream besides the texts."""

    include_usage: bool = False
    continuous_usage_stats: bool = False  # with include_usage: in all chunks
    include_obfuscation: bool = False  # nothing is obfuscated here


_Text = Annotated[str, Meta(min_length=1)]
_Ids = Annotated[list[int], Meta(min_length=1)]
_Stop = Annotated[str, Meta(min_length=1, max_length=100)]
_Zero = Annotated[float, Meta(ge=0, le=0)]
_One = Annotated[float, Meta(ge=1, le=1)]
_Empty = dict[str, None]  # nulls mean nothing
_NoText = Annotated[str, Meta(max_length=0)]
_NoIds = Annotated[list[int], Meta(max_length=0)]
_NEUTRAL: dict[Any, str] = {_Zero: "0", _One: "1", _Empty: "{}", _NoText: '""', _NoIds: "[]"}


class CompletionBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of a request to `/v1/completions`."""

    prompt: _Text | Annotated[list[int | _Text | _Ids], Meta(min_length=1)]
    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_TEXTS)] = 1
    seed: Annotated[int, Meta(ge=0, le=LIMITS["seed"])] = msgspec.field(
        default_factory=lambda: secrets.randbits(32)
    )
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_NEW)] = 16
    temperature: Annotated[float, Meta(ge=0, le=float(LIMITS["temperature"]))] = 1.0
    top_k: Annotated[int, Meta(ge=-1, le=LIMITS["top_k"])] | None = None  # 0 and -1: all
    top_p: Annotated[float, Meta(ge=1e-30, le=1)] = 1.0  # the least is above 0 in float32
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    noise_offset: Annotated[int, Meta(ge=0, le=2**30)] = 0
    logprobs: Annotated[int, Meta(ge=0)] | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=4)] = []
    echo: bool = False
    stream: bool = False
    stream_options: StreamOptions = msgspec.field(default_factory=StreamOptions)
    # Accepted with the values that change nothing.
    best_of: int | None = None
    frequency_penalty: _Zero = 0.0
    presence_penalty: _Zero = 0.0
    repetition_penalty: _One = 1.0
    length_penalty: _One = 1.0
    use_beam_search: bool = False
    min_tokens: _Zero = 0
    priority: _Zero = 0
    logit_bias: _Empty = {}
    metadata: _Empty = {}
    suffix: _NoText = ""
    stop_token_ids: _NoIds = []
    store: bool = False
    user: str = ""
    ignore_eos: bool = False  # there are no special tokens
    skip_special_tokens: bool = True


class CompletionRequest(CompletionBody, kw_only=True):
    """A checked request: `n` texts for each prompt, their options and the shape of the answer."""

    prompts: list[np.ndarray]  # ids of each, at least one

    @property
    def n_text(self) -> int:
        """Number of texts in the answer."""
        return len(self.prompts) * self.n

    def sample_seed(self, sample: int) -> int:
        """Return the seed of one of the `n` texts: the first has the seed of the request."""
        if sample == 0:
            return self.seed
        return int(np.random.SeedSequence([self.seed, sample]).generate_state(1)[0])


class SearchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request to `/v1/verbatim`."""

    text: Annotated[str, Meta(max_length=LIMITS["searched"])]


def parse(body: bytes, kind: type[T]) -> T:
    """Return the JSON object in the body of a request; an ApiError names the wrong field."""
    try:
        value = json.loads(body, object_pairs_hook=_object, parse_float=_number)
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        if field := re.fullmatch(r"(.*) - at `\$\.(\w+)([^`]*)`", message, re.DOTALL):
            message, name, path = field.groups()
            if neutral := _NEUTRAL.get(kind.__annotations__.get(name)):
                message = f"only {neutral} is supported"
            wrong = value.get(name)  # a name from the client may look like a path
            given = "" if isinstance(wrong, list | dict) else f" is {_shorten(json.dumps(wrong))}"
            raise ApiError(f"{name}{path}{given}: {_shorten(message)}", param=name) from error
        field = re.search(r"field `(.*)`", message, re.DOTALL)
        raise ApiError(f"the body: {_shorten(message)}", param=field and field[1]) from error
    except (RecursionError, ValueError) as error:  # the latter: lone surrogates in names, too
        raise ApiError(f"the body is not JSON: {_shorten(str(error))}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object without its nulls, which mean the default everywhere."""
    given: dict[str, Any] = {}
    for name, value in pairs:
        if name in given:
            raise ApiError(f"the field {_shorten(name)!r} is given more than once", param=name)
        given[name] = value
    return {name: value for name, value in given.items() if value is not None}


def _number(digits: str) -> float:
    value = float(digits)
    return int(value) if value.is_integer() else value  # 7.0 is 7 in JSON


def parse_completion(body: bytes, tokenizer: CharTokenizer, model_name: str) -> CompletionRequest:
    """Check the body of a completion request; an ApiError says what would be right."""
    given = parse(body, CompletionBody)
    check_model(given.model or model_name, model_name)
    n, n_vocab, best_of, k = given.n, tokenizer.vocab_size, given.best_of, given.logprobs
    _require(best_of in (None, n), "best_of", f"best_of is {best_of}; it must be equal to n ({n})")
    for name in ("store", "use_beam_search"):
        _require(not getattr(given, name), name, f"{name} is true: only false is supported")
    least = f"max_tokens is 0; without echo it must be from 1 to {MAX_NEW}"
    _require(given.max_tokens > 0 or given.echo, "max_tokens", least)
    streams = given.stream or given.stream_options == StreamOptions()
    _require(streams, "stream_options", "stream_options is only for stream: true")
    _require((k or 0) <= n_vocab, "logprobs", f"logprobs is {k}; it must be from 0 to {n_vocab}")

    prompts: list[Any] = given.prompt if isinstance(given.prompt, list) else [given.prompt]
    prompts = [prompts] if all(isinstance(each, int) for each in prompts) else prompts
    prompts = [_encode(each, tokenizer) for each in prompts]
    n_text, n_prompt = n * len(prompts), n * sum(map(len, prompts))
    most = f"prompts times n is {n_text}; it must be at most {MAX_TEXTS}"
    _require(n_text <= MAX_TEXTS, "n" if n > 1 else "prompt", most)
    most = f"the prompts have {n_prompt} characters in all; at most {MAX_PROMPT} are allowed"
    _require(n_prompt <= MAX_PROMPT, "prompt", most, code="context_length_exceeded")
    if k is not None:
        total = (k + 1) * (n_text * given.max_tokens + n_prompt * given.echo)
        most = f"at most {MAX_LOG_PROBS} are allowed: lower logprobs or max_tokens"
        message = f"the answer would hold {total} log-probabilities, {most}"
        _require(total <= MAX_LOG_PROBS, "logprobs", message)
    if given.top_k in (0, -1):
        given.top_k = None
    return CompletionRequest(prompts=prompts, **msgspec.structs.asdict(given))


def check_model(name: str, served: str) -> None:
    """Raise an ApiError if a client asks for another model."""
    if name != served:
        message = f"the model {_shorten(name)!r} is not served here; use {served!r}"
        raise ApiError(message, status=404, param="model", code="model_not_found")


def _encode(prompt: Any, tokenizer: CharTokenizer) -> np.ndarray:
    message = f"a prompt is {prompt}, an id beside other prompts; give a text or a list of ids"
    _require(not isinstance(prompt, int), "prompt", message)
    if isinstance(prompt, str):
        try:
            return tokenizer.encode(prompt)
        except UserError as error:
            raise ApiError(f"the prompt has characters {error}", param="prompt") from error
    n_vocab = tokenizer.vocab_size
    bad = next((i for i in prompt if not 0 <= i < n_vocab), None)
    message = f"the prompt has the id {bad}; ids are from 0 to {n_vocab - 1}"
    _require(bad is None, "prompt", message)
    return np.array(prompt, np.min_scalar_type(n_vocab - 1))


def _require(holds: bool, param: str, message: str, *, code: str | None = None) -> None:
    if not holds:
        raise ApiError(message, param=param, code=code)


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "..."
