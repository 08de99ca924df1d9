"""Evaluation of a trained run: loss on a text, and memorization of its training text."""

import bisect
import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from shakegpt_jax.data.corpus import Corpus, spread_pieces
from shakegpt_jax.data.text import read_text
from shakegpt_jax.errors import UserError
from shakegpt_jax.inference.language_model import LanguageModel, load
from shakegpt_jax.inference.sampling import require
from shakegpt_jax.inference.scoring import character_losses
from shakegpt_jax.reporting.metrics import Evaluation, read_metrics
from shakegpt_jax.reporting.terminal import format_duration

COLUMNS = ("run", "loss", "std. error", "perplexity", "parameters", "step", "training")
COPY_COLUMNS = ("longest copy", "in val. text")  # characters


@dataclasses.dataclass(frozen=True)
class RunEvaluation:
    """A checkpoint of a run and how well it predicts a text."""

    checkpoint: str
    step: int
    parameters: int
    train_time: float | None  # seconds of training up to the checkpoint, if known
    text: str  # its name, for people
    text_sha256: str  # of the whole file in UTF-8
    evaluation: Evaluation
    sampled_from: int | None  # characters of the text, if only a sample of them was scored
    copies: dict[str, str]  # see `longest_copies`; empty if they were not asked for

    def to_json(self) -> dict[str, Any]:
        """Return a flat JSON object."""
        fields = vars(self).copy()
        evaluation, copies = fields.pop("evaluation"), fields.pop("copies")
        if fields["sampled_from"] is None:
            del fields["sampled_from"]
        return fields | vars(evaluation) | copies

    @property
    def scored(self) -> str:
        """The text and how many of its characters were scored."""
        of = f"of {self.sampled_from:,} " if self.sampled_from else ""
        return f"{self.text}, {self.evaluation.count:,} {of}characters"

    def cells(self) -> list[str]:
        """Return the row of a table: `COLUMNS` but the first, and `COPY_COLUMNS` if known."""
        found = self.evaluation
        return [
            f"{found.loss:.4f}",
            "-" if found.standard_error is None else f"{found.standard_error:.4f}",
            f"{found.perplexity:.3f}",
            f"{self.parameters:,}",
            str(self.step),
            "" if self.train_time is None else format_duration(self.train_time),
            *(str(len(copy)) for copy in self.copies.values()),
        ]

    def __str__(self) -> str:
        """Return one line per value."""
        found, error = self.evaluation, self.evaluation.standard_error
        lines = {
            "checkpoint": self.checkpoint,
            "text": self.text,
            "loss": f"{found.loss:.4f} nats/character",
            "standard error": "unknown for one character" if error is None else f"{error:.4f}",
            "perplexity": f"{found.perplexity:.4f}",
            "bits per character": f"{found.bits_per_character:.4f}",
            "count": str(found.count)
            + (f", evenly spread over {self.sampled_from}" if self.sampled_from else ""),
        }
        for name, copy in self.copies.items():
            lines[name.replace("_", " ")] = f"{len(copy)} characters: {copy!r}"
        return "\n".join(f"{name:<19} {value}" for name, value in lines.items())


@dataclasses.dataclass(frozen=True)
class Selection:
    """A model and the text to evaluate it on, as `select` chooses them."""

    workdir: str | Path
    lm: LanguageModel
    corpus: Corpus | None  # the training text and its splits, if they were needed
    name: str  # of the text, for people
    source: str  # what it is a split of; empty: all of a text
    sha256: str  # of the whole file in UTF-8
    n_character: int  # of the whole text
    pieces: list[np.ndarray]  # ids: the text, or evenly spread pieces of it
    stride: int | None
    memorization: bool

    def evaluate(self) -> RunEvaluation:
        """Score the text."""
        model, params = self.lm.model, self.lm.params
        losses = [character_losses(model, params, ids, stride=self.stride) for ids in self.pieces]
        return self.summarize(np.concatenate(losses))

    def summarize(self, losses: np.ndarray) -> RunEvaluation:
        """Summarize the (count,) losses of the text, and search for copies if that was chosen."""
        lm, corpus, copies = self.lm, self.corpus, {}
        assert lm.step is not None  # load() sets it
        if self.memorization:
            assert corpus  # select() has loaded it
            copies = longest_copies(lm, corpus.train_ids, corpus.val_ids)
        return RunEvaluation(
            checkpoint=str(lm.checkpoint),
            step=lm.step,
            parameters=lm.n_params,
            train_time=_train_time(self.workdir, lm.step),
            text=self.name + (f" of {self.source}" if self.source else ""),
            text_sha256=self.sha256,
            evaluation=Evaluation.from_losses(losses),
            sampled_from=self.n_character if len(self.pieces[0]) < self.n_character else None,
            copies=copies,
        )


def select(
    workdir: str | Path,
    *,
    step: int | Literal["best", "latest"] = "best",
    split: Literal["train", "val"] | None = None,
    path: str | None = None,
    stride: int | None = None,
    characters: int | None = None,
    memorization: bool = False,
) -> Selection:
    """Load a checkpoint of a run and choose the text to evaluate it on.

    Args:
        workdir: run folder.
        step: the checkpoint.
        split: of the training text; None: validation, or all of `path`.
        path: another text, or with `split` where the training text is now.
        stride: see `LanguageModel.evaluate`.
        characters: how many to score, spread evenly; 0: all. None: of a split as many as in
            training, of another text all.
        memorization: whether to search for copies of the training text.
    """
    lm = load(workdir, step=step)
    corpus = None
    if split or path is None or memorization:
        try:
            corpus = lm.load_corpus(path if split else None)
        except UserError as error:
            raise UserError(
                f"{error}; pass --path FILE to evaluate another text, or --path FILE --split val "
                "with the training text"
            ) from error
    if path is not None and split is None:
        text, name, source, most = read_text(path), path, "", 0
        ids, sha256 = lm.tokenizer.encode(text), hashlib.sha256(text.encode()).hexdigest()
    else:
        assert corpus
        name = {"train": "the training split", "val": "the validation split"}[split or "val"]
        source = path or lm.config.data.path or "Tiny Shakespeare"
        ids = corpus.train_ids if split == "train" else corpus.val_ids
        sha256, most = corpus.sha256, lm.config.train.eval_characters
    most = most if characters is None else characters
    pieces = spread_pieces(ids, most, lm.config.model.block_size)
    require(len(ids) >= 2, "the text's length", len(ids), "2 or more")
    stride = lm.check_stride(stride)
    return Selection(
        workdir, lm, corpus, name, source, sha256, len(ids), pieces, stride, memorization
    )


def _train_time(workdir: str | Path, step: int) -> float | None:
    try:
        times = {row.step: row.train_time for row in read_metrics(workdir)}
    except (UserError, OSError):  # corrupt or not readable, which matters little here
        return None
    return times.get(step)


N_GENERATED = 10_000  # characters to search
SHORTEST_STRETCH = 20  # characters; shorter ones are common phrases
_LONGEST_SEARCH = 2**27  # characters of text; it is held in memory and searched many times


def longest_copy(text: str, source: str) -> str:
    """Return the longest substring of `text` that occurs in `source`; the first of several."""
    length, end = 0, 0
    for i in range(1, len(text) + 1):
        if text[i - length - 1 : i] in source:
            length, end = length + 1, i
    return text[end - length : end]


class Stretch(NamedTuple):
    """A stretch of text, text[start:end], that stands in another text."""

    start: int
    end: int
    place: int  # where it first stands in the other text


def copied_stretches(text: str, source: str, shortest: int = SHORTEST_STRETCH) -> list[Stretch]:
    """Return the maximal stretches of `text` that occur in `source`, in order; they may overlap."""
    n_gram = len(text) - shortest + 1
    grams = {text[i : i + shortest] for i in range(n_gram)}
    windows = (source[i : i + shortest] for i in range(len(source) - shortest + 1))
    found = {gram for gram in windows if gram in grams}
    stretches: list[Stretch] = []
    for start in range(n_gram):
        if text[start : start + shortest] not in found:
            continue
        # The last stretch contains text[start:end] at least if it reaches as far.
        reached = max(start + shortest, stretches[-1].end if stretches else 0)
        end = reached
        if text[reached + 1 - shortest : reached + 1] in found:  # else it cannot go on
            end += _longest_extension(text, source, start, reached)
        if not stretches or end > stretches[-1].end:
            stretches.append(Stretch(start, end, source.find(text[start:end])))
    return stretches


def _longest_extension(text: str, source: str, start: int, end: int) -> int:
    """Return by how much text[start:end], which occurs in `source`, can grow and still occur."""
    return -1 + bisect.bisect_left(
        range(len(text) - end + 1), True, key=lambda n: text[start : end + n] not in source
    )


def longest_copies(lm: LanguageModel, train_ids: np.ndarray, val_ids: np.ndarray) -> dict[str, str]:
    """Find the longest copy in text of a model and, as a baseline, in the validation text."""
    check_searchable(len(train_ids))
    train_text, val_text = (lm.tokenizer.decode(ids) for ids in (train_ids, val_ids))
    prompt = val_text[0]
    generated = lm.generate(prompt, N_GENERATED)[len(prompt) :]
    return {
        "longest_copy": longest_copy(generated, train_text),
        "in_validation_text": longest_copy(val_text[:N_GENERATED], train_text),
    }


def check_searchable(n_character: int) -> None:
    """Raise a UserError if a training text is too long to search for copies."""
    if n_character > _LONGEST_SEARCH:
        raise UserError(
            f"the training text has {n_character:,} characters; at most {_LONGEST_SEARCH:,} can "
            "be searched for copies"
        )
