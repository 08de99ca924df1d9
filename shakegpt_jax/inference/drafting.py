"""The n-gram that drafts for a model, used where drafts make sampling faster.

Axes: T characters of a window.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from shakegpt_jax.data.corpus import Corpus
from shakegpt_jax.errors import UserError
from shakegpt_jax.inference.decoding import acceptance_rate
from shakegpt_jax.inference.ngram import NGram, build_ngram, drafting_pays
from shakegpt_jax.inference.sampler import speedup_of_drafts
from shakegpt_jax.inference.sampling import Sampling
from shakegpt_jax.model.gpt import GPT


class Drafter:
    """Drafts for a model, of whose training text it builds an n-gram when first needed."""

    def __init__(self, model: GPT, params: Any, load_corpus: Callable[[], Corpus]):
        self._model, self._params, self._load_corpus = model, params, load_corpus
        self._acceptance_rates: dict[Sampling, float] = {}

    def choose(
        self, draft: bool | None, sampling: Sampling, n_row: int, n_new: int, window_stride: int
    ) -> NGram | None:
        """Return the n-gram if drafts are asked for, or if they are faster and `draft` is None."""
        n_params = sum(p.size for p in jax.tree.leaves(self._params))
        if draft is False or not (draft or drafting_pays(n_params, n_row, n_new, window_stride)):
            return None
        try:
            return self._ngram[0] if draft or self._speedup(sampling, n_row) > 1 else None
        except UserError as error:
            if draft:
                raise UserError(f"drafting needs the training text: {error}") from error
            return None

    @functools.cached_property
    def _ngram(self) -> tuple[NGram, np.ndarray]:
        """An n-gram of the training split, and a window of the validation split."""
        corpus = self._load_corpus()
        window_T = corpus.val_ids[: self._model.config.block_size]
        return build_ngram(corpus.train_ids, self._model.vocab_size), window_T

    def _speedup(self, sampling: Sampling, n_row: int) -> float:
        if sampling not in self._acceptance_rates:
            ngram, window_T = self._ngram
            contexts_T = ngram.contexts([window_T[: i + 1] for i in range(len(window_T))])
            rate = acceptance_rate(self._model, self._params, ngram, window_T, contexts_T, sampling)
            self._acceptance_rates[sampling] = float(rate)
        return speedup_of_drafts(self._acceptance_rates[sampling], n_row, self._model.config)
