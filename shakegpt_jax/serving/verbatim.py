"""Which stretches of a text stand verbatim in the training text, for `/v1/verbatim`."""

import asyncio
import concurrent.futures
import functools
from typing import Any

from shakegpt_jax.errors import UserError
from shakegpt_jax.inference.evaluation import (
    SHORTEST_STRETCH,
    check_searchable,
    copied_stretches,
)
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.serving.api_error import ApiError
from shakegpt_jax.serving.fields import Fields
from shakegpt_jax.serving.requests import parse_json

MAX_TEXT = 20_000  # characters to search for
MAX_SEARCHES = 8  # that run or wait

_AROUND = 60  # characters of the training text before and after a stretch


class Verbatim:
    """Searches the training text, one request at a time in a thread of its own."""

    def __init__(self, lm: LanguageModel):
        """Search the training text of a model; it is loaded by the first search."""
        self._lm = lm
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="verbatim")
        self._n_search = 0

    async def search(self, body: bytes) -> dict[str, Any]:
        """Answer a request.

        Raises:
            ApiError: if the request is wrong, too many others wait, or the text is not there.
        """
        text = _parse(parse_json(body))
        if self._n_search >= MAX_SEARCHES:
            message = f"{self._n_search} searches wait; try again later"
            raise ApiError(message, status=429, code="rate_limit_exceeded")
        self._n_search += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._find, text)
        finally:
            self._n_search -= 1

    def _find(self, text: str) -> dict[str, Any]:
        try:
            source = self._source
        except UserError as error:
            raise ApiError(f"the training text is not there: {error}", status=404) from error
        stretches = [
            {
                "start": start,
                "end": end,
                "place": place,
                "before": source[max(0, place - _AROUND) : place],
                "after": source[place + end - start : place + end - start + _AROUND],
            }
            for start, end, place in copied_stretches(text, source)
        ]
        return {"shortest": SHORTEST_STRETCH, "stretches": stretches}

    @functools.cached_property
    def _source(self) -> str:
        train_ids = self._lm.load_corpus().train_ids
        check_searchable(len(train_ids))
        return self._lm.tokenizer.decode(train_ids)


def _parse(body: dict[str, Any]) -> str:
    fields = Fields(body)
    text = fields.take("text")
    if not isinstance(text, str):
        raise ApiError("text is missing or not a text", param="text")
    if len(text) > MAX_TEXT:
        message = f"text has {len(text)} characters; at most {MAX_TEXT} are searched"
        raise ApiError(message, param="text")
    fields.finish()
    return text
