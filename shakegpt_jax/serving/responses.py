"""Answers in the shape of OpenAI's `/v1/completions`, as JSON text."""

import dataclasses
import functools
import json
import math
import secrets
import time
from collections.abc import Sequence

import numpy as np

from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.serving.requests import CompletionRequest
from shakegpt_jax.serving.rows import LogProbs, Piece

_LOG_PROBS = ('"tokens"', '"token_logprobs"', '"top_logprobs"', '"text_offset"')
_DIGITS = 6  # of log-probabilities, after the point
_LEAST = -9999.0  # in place of minus infinity, which JSON lacks


class Answer:
    """Makes the JSON of one answer: in the chunks of a stream, or piece by piece as a whole.

    No step takes long, so that the threads that take turns with this one need not wait.
    """

    def __init__(self, request: CompletionRequest, tokenizer: CharTokenizer, model_name: str):
        """Begin an answer."""
        self._request, self._tokenizer = request, tokenizer
        head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model_name,
        }
        self._head = json.dumps(head)[:-1]
        self._texts = [_Text() for _ in range(request.n_text)]

    @functools.cached_property
    def _names(self) -> list[str]:
        """The characters of the vocabulary in JSON."""
        return [json.dumps(character) for character in self._tokenizer.vocabulary]

    def chunk(self, piece: Piece) -> str:
        """Return the next chunk of a stream."""
        text = self._texts[piece.text]
        offset, text.length = text.length, text.length + len(piece.ids_T)
        characters = self._tokenizer.decode(piece.ids_T)
        log_probs = piece.log_probs and [self._log_probs(piece.ids_T, piece.log_probs, offset)]
        choice = self._choice(piece.text, characters, log_probs, piece.finish_reason)
        usage = ', "usage": null' if self._request.include_usage else ""
        return f'{self._head}, "choices": [{choice}]{usage}}}'

    def usage_chunk(self) -> str:
        """Return the last chunk of a stream that ends with the usage."""
        return f'{self._head}, "choices": [], "usage": {self._usage()}}}'

    def add(self, piece: Piece) -> None:
        """Add a piece to the whole answer."""
        text = self._texts[piece.text]
        if piece.log_probs:
            text.log_probs.append(self._log_probs(piece.ids_T, piece.log_probs, text.length))
        text.pieces.append(self._tokenizer.decode(piece.ids_T))
        text.length += len(piece.ids_T)
        text.finish_reason = piece.finish_reason

    def whole(self) -> str:
        """Return the answer of all pieces."""
        choices = ", ".join(
            self._choice(i, "".join(text.pieces), text.log_probs, text.finish_reason)
            for i, text in enumerate(self._texts)
        )
        return f'{self._head}, "choices": [{choices}], "usage": {self._usage()}}}'

    def _choice(
        self,
        index: int,
        text: str,
        log_probs: Sequence[tuple[str, ...]] | None,
        finish_reason: str | None,
    ) -> str:
        choice = {
            "index": index,
            "text": text,
            "finish_reason": finish_reason,
            "seed": self._request.sample_seed(index % self._request.n),
        }
        joined = "null"
        if log_probs:
            lists = [",".join(filter(None, parts)) for parts in zip(*log_probs, strict=True)]
            pairs = zip(_LOG_PROBS, lists, strict=True)
            joined = f"{{{', '.join(f'{name}: [{values}]' for name, values in pairs)}}}"
        return f'{json.dumps(choice)[:-1]}, "logprobs": {joined}}}'

    def _log_probs(self, ids_T: np.ndarray, log_probs: LogProbs, offset: int) -> tuple[str, ...]:
        """Return the items of each of the lists `_LOG_PROBS`."""
        ids = ids_T.tolist()
        chosen = [_number(value) for value in log_probs.chosen_T.tolist()]
        rows = zip(log_probs.top_ids_TxK.tolist(), log_probs.top_TxK.tolist(), strict=True)
        top = [self._top(i, value, *row) for i, value, row in zip(ids, chosen, rows, strict=True)]
        names, offsets = [self._names[i] for i in ids], range(offset, offset + len(ids))
        return tuple(map(",".join, (names, chosen, top, map(str, offsets))))

    def _top(self, chosen: int, value: str, top_ids: list[int], top: list[float]) -> str:
        """Return the most probable characters and the chosen one with their log-probabilities."""
        if value == "null":
            return value
        pairs = {i: _number(each) for i, each in zip(top_ids, top, strict=True)} | {chosen: value}
        return f"{{{','.join(f'{self._names[i]}:{each}' for i, each in pairs.items())}}}"

    def _usage(self) -> str:
        request = self._request
        n_prompt = sum(map(len, request.prompts))
        n_new = sum(text.length for text in self._texts)
        n_new -= n_prompt * request.n if request.echo else 0
        usage = {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_new,
            "total_tokens": n_prompt + n_new,
        }
        return json.dumps(usage)


@dataclasses.dataclass
class _Text:
    """One text of an answer, as far as it has been written."""

    length: int = 0
    finish_reason: str | None = None
    pieces: list[str] = dataclasses.field(default_factory=list)
    log_probs: list[tuple[str, ...]] = dataclasses.field(default_factory=list)


def _number(value: float) -> str:
    if math.isnan(value):
        return "null"
    return repr(round(max(value, _LEAST), _DIGITS))
