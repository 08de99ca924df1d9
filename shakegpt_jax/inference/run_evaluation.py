"""Evaluation of a trained run on its training text or another."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shakegpt_jax.data.corpus import Corpus, spread_pieces
from shakegpt_jax.data.text import read_text
from shakegpt_jax.errors import UserError
from shakegpt_jax.inference.arguments import require
from shakegpt_jax.inference.language_model import LanguageModel, load
from shakegpt_jax.inference.memorization import longest_copies
from shakegpt_jax.inference.scoring import character_losses
from shakegpt_jax.reporting.metrics import Evaluation
from shakegpt_jax.reporting.metrics_file import read_metrics
from shakegpt_jax.reporting.progress import format_duration

COLUMNS = ("run", "loss", "std. error", "perplexity", "parameters", "step", "training")
COPY_COLUMNS = ("longest copy", "in val. text")  # characters


@dataclasses.dataclass(frozen=True)
class RunEvaluation:
    """A checkpoint of a run and how well it predicts a text."""

    checkpoint: str
    step: int
    parameters: int
    train_time: float | None  # seconds of training up to the checkpoint, if known
    evaluation: Evaluation
    sampled_from: int | None  # characters of the text, if only a sample of them was scored
    copies: dict[str, str]  # see `longest_copies`; empty if they were not asked for

    def to_json(self) -> dict[str, Any]:
        """Return a flat JSON object."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        evaluation, copies = fields.pop("evaluation"), fields.pop("copies")
        if fields["sampled_from"] is None:
            del fields["sampled_from"]
        return fields | dataclasses.asdict(evaluation) | copies

    def cells(self) -> list[str]:
        """Return the row of a table: `COLUMNS` but the first, and `COPY_COLUMNS` if known."""
        found = self.evaluation
        return [
            f"{found.loss:.4f}",
            f"{found.standard_error:.4f}",
            f"{found.perplexity:.3f}",
            f"{self.parameters:,}",
            str(self.step),
            "" if self.train_time is None else format_duration(self.train_time),
            *(str(len(copy)) for copy in self.copies.values()),
        ]

    def __str__(self) -> str:
        """Return one line per value."""
        lines = {
            "checkpoint": self.checkpoint,
            "loss": f"{self.evaluation.loss:.4f} nats/character",
            "standard error": f"{self.evaluation.standard_error:.4f}",
            "perplexity": f"{self.evaluation.perplexity:.4f}",
            "bits per character": f"{self.evaluation.bits_per_character:.4f}",
            "count": str(self.evaluation.count)
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
        lm, corpus = self.lm, self.corpus
        assert lm.checkpoint  # load() sets it
        saved_step = int(lm.checkpoint.name)
        copies = {}
        if self.memorization:
            assert corpus  # select() has loaded it
            copies = longest_copies(lm, corpus.train_ids, corpus.val_ids)
        return RunEvaluation(
            checkpoint=str(lm.checkpoint),
            step=saved_step,
            parameters=lm.n_params,
            train_time=_train_time(self.workdir, saved_step),
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
        split: a part of the text that the run was trained on; None: its validation split, or all
            of `path`.
        path: another text; with `split`, the new path of the text that the run was trained on.
        stride: see `LanguageModel.evaluate`.
        characters: how many to score, evenly spread over the text; 0: all. None: for a split as
            many as in training, for another text all.
        memorization: whether to search for copies of the training text, which must be readable
            then, whatever is evaluated.

    Raises:
        UserError: if the checkpoint or a text cannot be read, the training text has changed, or
            another text has characters that the model lacks.
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
        name, ids, most = path, lm.tokenizer.encode(read_text(path)), 0
    else:
        assert corpus
        name = {"train": "the training split", "val": "the validation split"}[split or "val"]
        ids = corpus.train_ids if split == "train" else corpus.val_ids
        most = lm.config.train.eval_characters
    pieces = spread_pieces(
        ids, most if characters is None else characters, lm.model.config.block_size
    )
    require(len(ids) >= 2, "the text's length", len(ids), "2 or more")
    stride = lm.check_stride(stride)
    return Selection(workdir, lm, corpus, name, len(ids), pieces, stride, memorization)


def _train_time(workdir: str | Path, step: int) -> float | None:
    try:
        times = {row.step: row.train_time for row in read_metrics(workdir)}
    except (UserError, OSError):  # corrupt or not readable, which matters little here
        return None
    return times.get(step)
