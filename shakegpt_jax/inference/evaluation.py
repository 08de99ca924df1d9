"""Evaluation of a trained run: loss on a text, and memorization of its training text."""

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shakegpt_jax.data.corpus import Corpus, spread_pieces
from shakegpt_jax.data.text import read_text
from shakegpt_jax.errors import UserError
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.inference.loading import load
from shakegpt_jax.inference.scoring import evaluate
from shakegpt_jax.reporting.metrics import Evaluation, read_metrics
from shakegpt_jax.reporting.terminal import format_duration

_COPIES = {"longest_copy": "longest copy", "in_validation_text": "in val. text"}  # with headings
N_GENERATED = 10_000  # characters to search for copies
SHORTEST_STRETCH = 20  # characters; shorter ones are common phrases
_LONGEST_SEARCH = 2**27  # characters of text; it is held in memory and searched many times


@dataclasses.dataclass(frozen=True)
class Selection:
    """A model and the text to evaluate it on, as `select` chooses them."""

    lm: LanguageModel
    corpus: Corpus | None  # the training text and its splits, if the text is one of them
    name: str  # of the text, for people
    source: str  # what it is a split of; empty: all of a text
    sha256: str  # of the whole file in UTF-8
    n_character: int  # of the whole text
    pieces: list[np.ndarray]  # ids: the text, or evenly spread pieces of it
    stride: int | None

    def evaluate(self) -> dict[str, Any]:
        """Score the text; see `summarize`."""
        lm = self.lm
        return self.summarize(evaluate(lm.model, lm.params, *self.pieces, stride=self.stride))

    def summarize(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return a flat JSON object that says what was evaluated, and the result."""
        lm = self.lm
        if not math.isfinite(evaluation.loss):
            raise UserError(
                f"the model of {lm.checkpoint} gives log-probabilities that are not finite; choose "
                "another checkpoint"
            )
        run: dict[str, Any] = {
            "checkpoint": str(lm.checkpoint),
            "step": lm.step,
            "parameters": lm.n_params,
            "train_time": _train_time(lm),
            "text": self.name + (f" of {self.source}" if self.source else ""),
            "text_sha256": self.sha256,
        }
        if len(self.pieces[0]) < self.n_character:
            run["sampled_from"] = self.n_character
        return run | vars(evaluation)

    def longest_copies(self) -> dict[str, str]:
        """Find the longest copy in text of the model and, as a baseline, in the validation text."""
        corpus = self.corpus or self.lm.load_corpus()
        train_text = searchable_text(self.lm, corpus)
        val_text = self.lm.tokenizer.decode(corpus.val_ids)
        generated = self.lm.generate(val_text[0], N_GENERATED)[1:]
        copies = [longest_copy(text, train_text) for text in (generated, val_text[:N_GENERATED])]
        return dict(zip(_COPIES, copies, strict=True))


def select(
    workdir: str | Path,
    *,
    step: int | Literal["best", "latest"] = "best",
    split: Literal["train", "val"] | None = None,
    path: str | None = None,
    stride: int | None = None,
    characters: int | None = None,
) -> Selection:
    """Load a checkpoint of a run and choose the text to evaluate it on.

    `path` is another text, or with a `split` where the training text is now. `characters` is how
    many to score; 0: all, None: of a split as many as in training, of another text all.
    """
    lm = load(workdir, step=step)
    if path is not None and split is None:
        text, corpus, name, source, most = read_text(path), None, path, "", 0
        ids, sha256 = lm.tokenizer.encode(text), hashlib.sha256(text.encode()).hexdigest()
    else:
        try:
            corpus = lm.load_corpus(path)
        except UserError as error:
            raise UserError(
                f"{error}; pass --path FILE to evaluate another text, or --path FILE --split val "
                "with the training text"
            ) from error
        name = {"train": "the training split", "val": "the validation split"}[split or "val"]
        source = path or lm.config.data.path or "Tiny Shakespeare"
        ids = corpus.train_ids if split == "train" else corpus.val_ids
        sha256, most = corpus.sha256, lm.config.train.eval_characters
    most = most if characters is None else characters
    pieces = spread_pieces(ids, most, lm.config.model.block_size)
    return Selection(lm, corpus, name, source, sha256, len(ids), pieces, stride)


def _train_time(lm: LanguageModel) -> float | None:
    """Return the seconds of training up to the checkpoint, if known."""
    assert lm.checkpoint
    try:
        times = {row.step: row.train_time for row in read_metrics(lm.checkpoint.parents[1])}
    except (UserError, OSError):  # corrupt or not readable, which matters little here
        return None
    return times.get(lm.step or 0)


def scored_text(run: dict[str, Any]) -> str:
    """Return the text and how many of its characters were scored."""
    of = f"of {run['sampled_from']:,} " if "sampled_from" in run else ""
    return f"{run['text']}, {run['count']:,} {of}characters"


def table_row(run: dict[str, Any]) -> dict[str, str]:
    """Return the cells of a table by their headings."""
    error, time = run["standard_error"], run["train_time"]
    cells = {
        "loss": f"{run['loss']:.4f}",
        "std. error": "-" if error is None else f"{error:.4f}",
        "perplexity": f"{run['perplexity']:.3f}",
        "parameters": f"{run['parameters']:,}",
        "step": str(run["step"]),
        "training": "" if time is None else format_duration(time),
    }
    return cells | {_COPIES[name]: str(len(run[name])) for name in _COPIES if name in run}


def describe(run: dict[str, Any]) -> str:
    """Return one line per value."""
    error, of = run["standard_error"], run.get("sampled_from")
    lines = {
        "checkpoint": run["checkpoint"],
        "text": run["text"],
        "loss": f"{run['loss']:.4f} nats/character",
        "standard error": "unknown for one character" if error is None else f"{error:.4f}",
        "perplexity": f"{run['perplexity']:.4f}",
        "bits per character": f"{run['bits_per_character']:.4f}",
        "count": f"{run['count']:,}" + (f", evenly spread over {of:,}" if of else ""),
    }
    for name in _COPIES:
        if name in run:
            lines[name.replace("_", " ")] = f"{len(run[name]):,} characters: {run[name]!r}"
    return "\n".join(f"{name:<19} {value}" for name, value in lines.items())


def searchable_text(lm: LanguageModel, corpus: Corpus) -> str:
    """Return the training text, if it is short enough to search for copies."""
    if (n := len(corpus.train_ids)) > _LONGEST_SEARCH:
        raise UserError(
            f"the training text has {n:,} characters; at most {_LONGEST_SEARCH:,} can be searched "
            "for copies"
        )
    return lm.tokenizer.decode(corpus.train_ids)


def longest_copy(text: str, source: str) -> str:
    """Return the longest substring of `text` that occurs in `source`; the first of several."""
    length, end = 0, 0
    for i in range(1, len(text) + 1):
        if text[i - length - 1 : i] in source:
            length, end = length + 1, i
    return text[end - length : end]


def copied_stretches(
    text: str, source: str, shortest: int = SHORTEST_STRETCH
) -> list[tuple[int, int, int]]:
    """Return (start, end, first place in `source`) of each maximal stretch in both."""
    grams = {text[i : i + shortest] for i in range(len(text) - shortest + 1)}
    windows = (source[i : i + shortest] for i in range(len(source) - shortest + 1))
    found = {gram for gram in windows if gram in grams}
    stretches: list[tuple[int, int, int]] = []
    reached = 0
    for start in range(len(text) - shortest + 1):
        if text[start : start + shortest] not in found:
            continue
        # The last stretch contains text[start:end] at least if it reaches as far.
        end, place = max(start + shortest, reached), 0
        while text[end + 1 - shortest : end + 1] in found:  # else it cannot go on
            longer = source.find(text[start : end + 1], place)
            if longer < 0:
                break
            end, place = end + 1, longer
        if end > reached:
            stretches.append((start, end, source.find(text[start:end], place)))
            reached = end
    return stretches
