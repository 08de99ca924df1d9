"""Answers in the shape of OpenAI's API: the types that are encoded as JSON."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

# The most probable characters and the one that came, with their log-probabilities.
Top = Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "object"})]


class LogProbs(msgspec.Struct):
    """Natural log-probabilities of characters, those of the model itself."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[Top | None]
    text_offset: list[int]


class Choice(msgspec.Struct):
    """One text, or its next piece."""

    index: int
    text: str
    logprobs: LogProbs | None
    finish_reason: Literal["stop", "length"] | None
    seed: int


class Usage(msgspec.Struct):
    """Numbers of characters."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(msgspec.Struct):
    """The answer to a request for texts, or a chunk of a stream."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"


class Model(msgspec.Struct):
    """A model that is served."""

    id: str
    created: int
    owned_by: str = "shakegpt_jax"
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct):
    """The models that are served."""

    data: list[Model]
    object: Literal["list"] = "list"


class Health(msgspec.Struct):
    """The state of the server; `texts` counts those in progress or queued."""

    texts: int
    status: Literal["ok"] = "ok"


class Copy(msgspec.Struct):
    """A stretch of a text, its place in the training text, and what is around it there."""

    start: int
    end: int
    place: int
    before: str
    after: str


class Copies(msgspec.Struct):
    """The stretches of `shortest` characters or more that are copied from the training text."""

    shortest: int
    stretches: list[Copy]


class Problem(msgspec.Struct):
    """The reason for refusing a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failure(msgspec.Struct):
    """The answer to a request that is refused or fails."""

    error: Problem
