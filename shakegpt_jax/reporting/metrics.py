"""Typed metrics of evaluation and training."""

import dataclasses
import math
from typing import Any, Self

import numpy as np


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Summary of how well a model predicts a text."""

    loss: float  # mean negative log-probability, nats per character
    standard_error: float  # of the loss, treating characters as independent
    perplexity: float  # exp(loss)
    bits_per_character: float  # loss / ln 2
    count: int  # characters scored

    @classmethod
    def from_losses(cls, losses: np.ndarray) -> Self:
        """Summarize (count,) losses in nats. Sums are taken in float64."""
        losses = losses.astype(np.float64)
        loss = float(losses.mean())
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(loss))
        return cls(
            loss=loss,
            standard_error=float(losses.std() / math.sqrt(len(losses))),
            perplexity=perplexity,
            bits_per_character=loss / math.log(2),
            count=len(losses),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainMetrics:
    """Metrics of the steps of one dispatch."""

    step: int  # last step of the dispatch
    seconds: float  # duration of the dispatch
    characters_per_second: float
    train_loss: float | None  # mean, nats per character; None if every update was skipped
    learning_rate: float  # of the last step
    gradient_norm: float | None  # mean, before clipping
    skipped_updates: int = 0  # excluded from the means


_OPTIONAL = ("train_loss", "gradient_norm", "train_time", "wall_time")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsRow:
    """A row of metrics.jsonl: metrics since the previous row, and cumulative times."""

    step: int
    characters_per_second: float
    train_loss: float | None
    learning_rate: float
    gradient_norm: float | None
    skipped_updates: int = 0
    evaluation: Evaluation | None = None  # of the validation split
    train_time: float | None  # seconds of the run so far in training steps, if known
    wall_time: float | None  # seconds of the run so far, compilation, evaluation, saving included

    @classmethod
    def create(
        cls,
        train: TrainMetrics,
        evaluation: Evaluation | None,
        *,
        train_time: float | None,
        wall_time: float | None,
    ) -> Self:
        """Combine the metrics of a dispatch, of an evaluation and the two times."""
        fields = {k: v for k, v in dataclasses.asdict(train).items() if k != "seconds"}
        return cls(**fields, evaluation=evaluation, train_time=train_time, wall_time=wall_time)

    def to_json(self) -> dict[str, Any]:
        """Return a flat JSON object, evaluation metrics with the prefix `val_`."""
        row: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "evaluation":
                validation = dataclasses.asdict(value) if value else {}
                row |= {f"val_{name}": figure for name, figure in validation.items()}
            elif field.name != "skipped_updates" or value:
                row[field.name] = value
        return row

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """Read the result of `to_json`.

        Raises:
            ValueError: if a value is missing or is not a finite number.
        """
        numbers = [v for k, v in row.items() if v is not None or k not in _OPTIONAL]
        if not all(type(v) in (int, float) and -math.inf < v < math.inf for v in numbers):
            raise ValueError("not a row of finite numbers")
        if type(row.get("step")) is not int:
            raise ValueError("its step is not a whole number")
        validation = {k.removeprefix("val_"): v for k, v in row.items() if k.startswith("val_")}
        names = {field.name for field in dataclasses.fields(cls)}
        try:
            return cls(
                **{k: v for k, v in row.items() if k in names},
                evaluation=Evaluation(**validation) if validation else None,
            )
        except TypeError as error:
            raise ValueError(str(error)) from error
