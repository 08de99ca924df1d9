"""Scaling of a training step's time with layers, width, window and batch."""

import numpy as np

from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import load_corpus
from shakegpt_jax.profiling.measurements import measure_training

_DOUBLINGS = 3
_STEPS_PER_DISPATCH = 4

# Exponents if matmuls dominate. Attention raises that of the window.
EXPECTED_EXPONENTS = {
    "model.n_layer": 1.0,
    "model.n_embd": 2.0,
    "model.block_size": 1.0,
    "data.batch_size": 1.0,
}


def step_seconds(config: Config) -> float:
    """Time one training step of a config, without compilation; the median of several."""
    corpus = load_corpus(config.data.path, config.model.block_size)
    few = config.replace({"train.steps_per_dispatch": _STEPS_PER_DISPATCH})
    return measure_training(few, corpus).seconds


def measure_growth(config: Config, field: str) -> tuple[list[int], list[float]]:
    """Double one field repeatedly; return its values and the seconds per step of each."""
    section, name = field.split(".")
    first = getattr(getattr(config, section), name)
    values = [first * 2**doubling for doubling in range(_DOUBLINGS + 1)]
    return values, [step_seconds(config.replace({field: value})) for value in values]


def exponent(values: list[int], seconds: list[float]) -> float:
    """Fit seconds = c * value ** exponent by least squares of the logarithms."""
    return float(np.polyfit(np.log(values), np.log(seconds), 1)[0])
