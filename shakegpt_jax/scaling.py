"""Measure how the cost of a training step grows with layers, width, window and batch.

    python -m shakegpt_jax.scaling --config configs/cpu.py [--plot scaling.png]

One at a time is doubled, from the config's own value on. `--plot` needs matplotlib: pip install
-e '.[plot]'.
"""

import json
import sys

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from shakegpt_jax.benchmark import measure_training
from shakegpt_jax.cli import run_command, use_compilation_cache
from shakegpt_jax.config import Config
from shakegpt_jax.data import load_corpus
from shakegpt_jax.flags import parse_flags
from shakegpt_jax.plot import import_pyplot

_DOUBLINGS = 3
_STEPS_PER_DISPATCH = 4

# How a step's time grows where matmuls are all of it; attention makes the window's a little more.
EXPECTED_EXPONENTS = {
    "model.n_layer": 1.0,
    "model.n_embd": 2.0,
    "model.block_size": 1.0,
    "data.batch_size": 1.0,
}


def step_seconds(config: Config) -> float:
    """Time one training step of a config, compilation left out: a median of several."""
    corpus = load_corpus(config.data.path, config.model.block_size)
    few = config.replace({"train.steps_per_dispatch": _STEPS_PER_DISPATCH})
    return measure_training(few, corpus).seconds


def measure_growth(config: Config, field: str) -> tuple[list[int], list[float]]:
    """Time steps with one field doubled again and again; its values, and seconds per step."""
    section, name = field.split(".")
    first = getattr(getattr(config, section), name)
    values = [first * 2**doubling for doubling in range(_DOUBLINGS + 1)]
    return values, [step_seconds(config.replace({field: value})) for value in values]


def exponent(values: list[int], seconds: list[float]) -> float:
    """Fit seconds = c * value ** exponent by least squares of the logarithms."""
    return float(np.polyfit(np.log(values), np.log(seconds), 1)[0])


def main() -> None:
    """Run the command line; --help lists its flags."""
    plot = flags.DEFINE_string("plot", None, "write a picture to this file")
    as_json = flags.DEFINE_bool("json", False, "print one JSON object")
    config, _ = parse_flags(sys.argv)
    if plot.value:
        import_pyplot()  # told before the minutes of measuring
    use_compilation_cache()
    growth = {field: measure_growth(config, field) for field in EXPECTED_EXPONENTS}
    if as_json.value:
        print(json.dumps(growth, indent=2))
    else:
        _print(growth)
    if plot.value:
        _plot(growth, plot.value)


def _print(growth: dict[str, tuple[list[int], list[float]]]) -> None:
    table = Table("field", "values", "ms per step", "exponent", "expected")
    for field, (values, seconds) in growth.items():
        table.add_row(
            field,
            " ".join(map(str, values)),
            " ".join(f"{s * 1e3:.1f}" for s in seconds),
            f"{exponent(values, seconds):.2f}",
            f"{EXPECTED_EXPONENTS[field]:.0f}",
        )
    Console(highlight=False).print(table)


def _plot(growth: dict[str, tuple[list[int], list[float]]], path: str) -> None:
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for field, (values, seconds) in growth.items():
        factors = np.array(values) / values[0]
        label = f"{field}: {exponent(values, seconds):.2f}"
        axes.loglog(factors, np.array(seconds) * 1e3, "o-", base=2, label=label)
    axes.set_xlabel("times the config's value")
    axes.set_ylabel("ms per step")
    axes.set_title("Cost of a training step; measured exponents")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run_command(main)
