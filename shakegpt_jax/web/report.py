"""The report of an evaluation as a page: what the model predicts, how well, and how it attends.

Axes: N characters, V vocabulary, K characters of which probabilities are shown, B lines, L layers,
H heads, T characters per window.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

from shakegpt_jax.errors import UserError
from shakegpt_jax.inference.evaluation import (
    SHORTEST_STRETCH,
    Selection,
    copied_stretches,
    searchable_text,
)
from shakegpt_jax.inference.inspection import attention_weights
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.inference.scoring import character_predictions, next_logits
from shakegpt_jax.model.layers import gpt2_parameters
from shakegpt_jax.reporting.metrics import Evaluation
from shakegpt_jax.web.breakdown import breakdowns
from shakegpt_jax.web.page import encode_array, render_page, write_page
from shakegpt_jax.web.prompt_page import page_facts

_SHOWN_CHARACTERS = 10_000  # of the text
_SHOWN_LOGITS = 2**25  # of large vocabularies, fewer characters are shown
_SHOWN_PROBABILITIES = 100  # per character, the largest
_ATTENTION_BYTES = 1_500_000  # of the lines whose attention is shown, but one line at least
_ATTENTION_BATCH = 2**23  # weights computed at a time

_LOG_PROBABILITY_UNIT = 24 / (2**16 - 1)  # of 16 bits; the smallest is e^-24


def write_report(selection: Selection, path: str | Path) -> dict[str, Any]:
    """Evaluate a model on a text, and write a page with the result; `report.js` describes it."""
    lm = selection.lm
    gpt2_parameters(lm.config.model, lm.params, "the report")
    predictions = character_predictions(
        lm.model, lm.params, *selection.pieces, stride=selection.stride
    )
    evaluation = Evaluation.from_losses(predictions.losses)
    result = selection.summarize(evaluation)
    data = {
        "run": page_facts(lm),
        "text": {
            "name": selection.name,
            "characters": selection.n_character,
            "pieces": len(selection.pieces),
            "stride": selection.stride or lm.config.model.block_size,
        },
        "evaluation": vars(evaluation) | {"accuracy": float(predictions.correct.mean())},
        "shown": show_text(selection),
        **breakdowns(selection, predictions),
    }
    page, _ = render_page("report", "report.js", f"{lm.name}: looking inside", data)
    write_page(page, path)
    return result


def show_text(selection: Selection) -> dict[str, Any]:
    """Return the start of the evaluated text with distributions, attention and copies."""
    lm = selection.lm
    left = min(_SHOWN_CHARACTERS, _SHOWN_LOGITS // lm.tokenizer.vocab_size)
    ids = np.concatenate(selection.pieces)[:left]
    ends = np.cumsum([len(piece) for piece in selection.pieces])
    ends = ends[ends < len(ids)]
    pieces, starts = np.split(ids, ends), [0, *ends.tolist()]
    log_probs_NxV = np.concatenate([log_probabilities(lm, p, selection.stride) for p in pieces])
    text = lm.tokenizer.decode(ids)
    return {
        "text": text,
        "starts": starts,
        "losses": encode_array(-log_probs_NxV[np.arange(len(ids)), ids]),
        "distributions": encode_distributions(log_probs_NxV),
        "attention": encode_attention(lm, ids, text, starts),
        "copies": find_copies(selection, text, starts),
    }


def log_probabilities(lm: LanguageModel, ids: np.ndarray, stride: int | None) -> np.ndarray:
    """Return the (N, V) float32 log-probabilities of each character; uniform for the first."""
    logits_NxV = next_logits(lm.model, lm.params, ids, stride=stride)
    return log_softmax(np.concatenate([np.zeros_like(logits_NxV[:1]), logits_NxV[:-1]]), axis=1)


def encode_distributions(log_probs_NxV: np.ndarray) -> dict[str, Any]:
    """Quantize the negative log-probabilities, of large vocabularies the K smallest, to 16 bits."""
    size, ids = min(log_probs_NxV.shape[1], _SHOWN_PROBABILITIES), None
    if size < log_probs_NxV.shape[1]:
        ids_NxK = np.argsort(-log_probs_NxV, 1, kind="stable")[:, :size]
        log_probs_NxV = np.take_along_axis(log_probs_NxV, ids_NxK, 1)
        ids = encode_array(ids_NxK.astype(np.uint32))
    values = np.clip(np.round(-log_probs_NxV / _LOG_PROBABILITY_UNIT), 0, 2**16 - 1)
    return {
        "size": size,
        "unit": _LOG_PROBABILITY_UNIT,
        "values": encode_array(values.astype(np.uint16)),
        "ids": ids,
    }


def split_lines(text: str, starts: Sequence[int], longest: int) -> list[tuple[int, int, int]]:
    """Return (start of its piece, start, end) of each line; long lines are split."""
    lines = []
    for begin, stop in zip(starts, [*starts[1:], len(text)], strict=True):
        start = begin
        for line in text[begin:stop].split("\n"):
            for i in range(start, start + len(line), longest):
                lines.append((begin, i, min(i + longest, start + len(line))))
            start += len(line) + 1
    return lines


def encode_attention(
    lm: LanguageModel, ids: np.ndarray, text: str, starts: Sequence[int]
) -> dict[str, Any]:
    """Compute the attention of the first lines, each in a window that ends with the line.

    `lines` has the start and end of each line, the start of its window, and its offset in `values`:
    square roots of the (L, H, characters of the line, characters of the window) weights in 255ths.
    """
    shape = lm.config.model
    n_time, n_map = shape.block_size, shape.n_layer * shape.n_head
    lines: list[tuple[int, int, int, int]] = []
    offset = 0
    for begin, start, end in split_lines(text, starts, n_time):
        begin = max(begin, end - n_time)
        size = n_map * (end - start) * (end - begin)
        if lines and offset + size > _ATTENTION_BYTES:
            break
        lines.append((start, end, begin, offset))
        offset += size
    batch = max(1, _ATTENTION_BATCH // (n_map * n_time**2))
    values = [np.zeros(0, np.uint8)]
    for first in range(0, len(lines), batch):
        some = lines[first : first + batch]
        idx_BxT = np.zeros((min(batch, len(lines)), n_time), np.int32)  # causal: padding is ignored
        for row, (_, end, begin, _) in zip(idx_BxT, some, strict=False):
            row[: end - begin] = ids[begin:end]
        weights = np.asarray(attention_weights(lm.model, lm.params, idx_BxT))
        for weights_LxHxTxT, (start, end, begin, _) in zip(weights, some, strict=False):
            kept = weights_LxHxTxT[:, :, start - begin : end - begin, : end - begin]
            values.append(np.round(255 * np.sqrt(kept)).astype(np.uint8).ravel())
    return {"lines": lines, "values": encode_array(np.concatenate(values))}


def find_copies(selection: Selection, text: str, starts: Sequence[int]) -> dict[str, Any]:
    """Find the stretches of the text that stand in the training text, or why they are unknown."""
    known: dict[str, Any] = {"shortest": SHORTEST_STRETCH, "stretches": [], "whole": False}
    known["source"] = Path(selection.lm.config.train.init_from).name  # which is not compared
    try:
        source = searchable_text(selection.lm, selection.corpus or selection.lm.load_corpus())
    except UserError as error:
        return known | {"problem": str(error)}
    parts = [text[i:j] for i, j in zip(starts, [*starts[1:], len(text)], strict=True)]
    for begin, part in zip(starts, parts, strict=True):
        known["stretches"] += [
            {"start": begin + start, "end": begin + end, "place": place}
            for start, end, place in copied_stretches(part, source)
        ]
    return known | {"whole": all(part in source for part in parts)}
