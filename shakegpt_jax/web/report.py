"""The report of an evaluation as a page: what the model predicts, how well, and how it attends."""

from pathlib import Path
from typing import Any

import numpy as np

from shakegpt_jax.inference.evaluation import RunEvaluation, Selection
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.inference.scoring import Predictions, character_predictions
from shakegpt_jax.web import breakdown
from shakegpt_jax.web.page import render_page, write_page
from shakegpt_jax.web.shown_text import show_text

_STYLES = ("characters.css", "report.css")
_SCRIPTS = (
    "base64.js",
    "characters.js",
    "distribution.js",
    "charts.js",
    "attention.js",
    "report.js",
)


def write_report(selection: Selection, path: str | Path) -> RunEvaluation:
    """Evaluate a model on a text, and write a page about it.

    Args:
        selection: the model and the text.
        path: the HTML file; replaced if it exists.

    Raises:
        UserError: if the page cannot be written.
    """
    lm = selection.lm
    parts = [
        character_predictions(lm.model, lm.params, ids, stride=selection.stride)
        for ids in selection.pieces
    ]
    predictions = Predictions(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    result = selection.summarize(predictions.losses)
    name = Path(selection.workdir).resolve().name
    data = {
        "run": describe_run(name, lm, result),
        "text": describe_text(selection),
        "evaluation": vars(result.evaluation) | {"accuracy": float(predictions.correct.mean())},
        "shown": show_text(selection),
        **breakdowns(selection, predictions),
    }
    page, _ = render_page("report.html", _STYLES, _SCRIPTS, f"{name}: looking inside", data)
    write_page(page, path)
    return result


def describe_run(name: str, lm: LanguageModel, result: RunEvaluation) -> dict[str, Any]:
    """Return what the report says about the run."""
    shape = lm.config.model
    return {
        "name": name,
        "step": result.step,
        "parameters": result.parameters,
        "layers": shape.n_layer,
        "heads": shape.n_head,
        "window": shape.block_size,
    }


def describe_text(selection: Selection) -> dict[str, Any]:
    """Return what the report says about the evaluated text."""
    n_time = selection.lm.config.model.block_size
    return {
        "name": selection.name,
        "vocabulary": selection.lm.tokenizer.vocabulary,
        "characters": selection.n_character,
        "pieces": len(selection.pieces),
        "stride": n_time if selection.stride is None else selection.stride,
    }


def breakdowns(selection: Selection, predictions: Predictions) -> dict[str, Any]:
    """Return losses by position, kind and letter of a word, and the calibration."""
    lm, losses = selection.lm, predictions.losses
    n_time, vocabulary = lm.config.model.block_size, lm.tokenizer.vocabulary
    pieces = selection.pieces
    positions = np.concatenate(
        [breakdown.window_positions(len(ids) - 1, n_time, selection.stride) for ids in pieces]
    )
    kinds = breakdown.character_kinds(vocabulary)[np.concatenate([ids[1:] for ids in pieces])]
    ranks = np.concatenate([breakdown.letter_ranks(ids, vocabulary)[1:] for ids in pieces])
    names = ("first letters of words", "second letters", "third letters", "later letters")
    letters = ranks > 0
    calibration = breakdown.calibrate(predictions.confidences, predictions.correct)
    return {
        "positions": _to_json(breakdown.group_losses(losses, positions, n_time)),
        "kinds": {"names": breakdown.KINDS}
        | _to_json(breakdown.group_losses(losses, kinds, len(breakdown.KINDS))),
        "letters": {"names": names}
        | _to_json(
            breakdown.group_losses(losses[letters], np.minimum(ranks[letters], 4) - 1, len(names))
        ),
        "calibration": _to_json(calibration),
    }


def _to_json(values: breakdown.Groups | breakdown.Calibration) -> dict[str, Any]:
    return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in values._asdict().items()}
