"""Answers in the shape of OpenAI's `/v1/completions`, as JSON text."""

import json
import math
import secrets
import time
from typing import Any

from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.serving.requests import CompletionRequest
from shakegpt_jax.serving.rows import LogProbs, Piece

_DIGITS = 6  # of log-probabilities, after the point
_LEAST = -9999.0  # in place of minus infinity, which JSON lacks


class Answer:
    """Makes the JSON of one answer, whole or in the chunks of a stream."""

    def __init__(self, request: CompletionRequest, tokenizer: CharTokenizer, model_name: str):
        """Begin an answer."""
        self._request, self._tokenizer = request, tokenizer
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model_name,
        }
        self._names = [json.dumps(character) for character in tokenizer.vocabulary]
        self._lengths = [0] * (len(request.prompts) * request.n)

    def chunk(self, piece: Piece) -> str:
        """Return a chunk of a stream."""
        choice = self._choice(piece)
        usage = ',"usage":null' if self._request.include_usage else ""
        return f'{json.dumps(self._head)[:-1]},"choices":[{choice}]{usage}}}'

    def usage_chunk(self) -> str:
        """Return the last chunk of a stream, if it was asked for."""
        return json.dumps({**self._head, "choices": [], "usage": self._usage()})

    def whole(self, pieces: list[Piece]) -> str:
        """Return the answer of all pieces."""
        texts: dict[int, list[Piece]] = {}
        for piece in pieces:
            texts.setdefault(piece.index, []).append(piece)
        choices = ",".join(self._choice(Piece.concatenate(texts[i])) for i in sorted(texts))
        usage = json.dumps(self._usage())
        return f'{json.dumps(self._head)[:-1]},"choices":[{choices}],"usage":{usage}}}'

    def _choice(self, piece: Piece) -> str:
        offset = self._lengths[piece.index]
        self._lengths[piece.index] += len(piece.ids_T)
        choice = {
            "index": piece.index,
            "text": self._tokenizer.decode(piece.ids_T),
            "finish_reason": piece.finish_reason,
            "seed": self._request.sample_seed(piece.index % self._request.n),
        }
        log_probs = "null"
        if piece.log_probs:
            log_probs = self._log_probs(piece.ids_T.tolist(), piece.log_probs, offset)
        return f'{json.dumps(choice)[:-1]},"logprobs":{log_probs}}}'

    def _log_probs(self, ids: list[int], log_probs: LogProbs, offset: int) -> str:
        """Return the JSON of log-probabilities, made in small steps: other threads go on."""
        chosen = [_number(value) for value in log_probs.chosen_T.tolist()]
        top = ",".join(
            self._top(i, value, *best)
            for i, value, *best in zip(
                ids, chosen, log_probs.top_ids_TxK.tolist(), log_probs.top_TxK.tolist(), strict=True
            )
        )
        tokens = ",".join(self._names[i] for i in ids)
        offsets = ",".join(map(str, range(offset, offset + len(ids))))
        return (
            f'{{"tokens":[{tokens}],"token_logprobs":[{",".join(chosen)}],'
            f'"top_logprobs":[{top}],"text_offset":[{offsets}]}}'
        )

    def _top(self, chosen: int, value: str, top_ids: list[int], top: list[float]) -> str:
        if value == "null":
            return value
        pairs = {i: _number(each) for i, each in zip(top_ids, top, strict=True)} | {chosen: value}
        return f"{{{','.join(f'{self._names[i]}:{each}' for i, each in pairs.items())}}}"

    def _usage(self) -> dict[str, Any]:
        request = self._request
        n_prompt = sum(map(len, request.prompts))
        n_new = sum(self._lengths) - (n_prompt * request.n if request.echo else 0)
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_new,
            "total_tokens": n_prompt + n_new,
        }


def _number(value: float) -> str:
    if math.isnan(value):
        return "null"
    return repr(round(max(value, _LEAST), _DIGITS))
