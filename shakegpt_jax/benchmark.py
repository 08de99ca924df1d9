"""Measure speed against this machine's own ceilings.

    python -m shakegpt_jax.benchmark --config configs/cpu.py [--config.data.batch_size=4 ...]

Each figure is the median of several repeats, the first run, with its compilation, left out. The
ceilings are measured on the spot: a large matmul in the config's compute type, and the faster of
a large copy (bytes read and written) and a large matrix-vector product (bytes read).
"""

import dataclasses
import functools
import importlib.metadata
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.typing import DTypeLike
from rich.console import Console
from rich.table import Table

from shakegpt_jax import sampler
from shakegpt_jax.cli import run_command, use_compilation_cache
from shakegpt_jax.config import Config
from shakegpt_jax.data import Corpus, load_corpus
from shakegpt_jax.evaluate import evaluate
from shakegpt_jax.flags import parse_flags
from shakegpt_jax.model import GPT, compute_dtype, init_params, train_flops_per_character
from shakegpt_jax.sharding import make_mesh
from shakegpt_jax.trainer import Trainer

_REPEATS = 5


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One kind of work: how long it takes, and how much it is."""

    work: str
    seconds: float  # median of the repeats
    characters: int  # of one repeat
    flops: float | None = None  # where arithmetic bounds it
    bytes: float | None = None  # where memory does: the least that must be read
    compile_seconds: float | None = None  # where it was timed apart

    def to_row(self, ceilings: dict[str, float]) -> dict[str, Any]:
        """Turn it into rates per second, and the share of the ceiling that bounds it."""
        amount, unit = (self.flops, "flops") if self.flops else (self.bytes or 0.0, "bytes")
        rate = amount / self.seconds
        return {
            "work": self.work,
            "seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
            "characters_per_second": self.characters / self.seconds,
            f"{unit}_per_second": rate,
            "share_of_ceiling": rate / ceilings[f"{unit}_per_second"],
        }


def median_seconds(run: Callable[[], Any], repeats: int = _REPEATS) -> float:
    """Time a function, compiled by a first run that is not counted; waits for its result."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_ceilings(dtype: DTypeLike) -> dict[str, float]:
    """Measure `flops_per_second` of matmuls and `bytes_per_second` of the default device."""
    size, rows = (2_048, 2**13) if jax.default_backend() == "cpu" else (8_192, 2**16)
    keys = jax.random.split(jax.random.key(0))
    # Random numbers: some devices multiply zeros faster.
    square = jax.random.normal(keys[0], (size, size), dtype)
    large = jax.random.normal(keys[1], (rows, 2**13), dtype)
    vector = large[0]

    def copy() -> jax.Array:
        nonlocal large
        large = _negate(large)
        return large

    reading = large.nbytes / median_seconds(lambda: _multiply(large, vector))
    copying = 2 * large.nbytes / median_seconds(copy)
    return {
        "flops_per_second": 2 * size**3 / median_seconds(lambda: _multiply(square, square)),
        "bytes_per_second": max(reading, copying),
    }


def measure_training(config: Config, corpus: Corpus) -> Measurement:
    """Time one optimizer step; `config.train.steps_per_dispatch` of them are one repeat."""
    n = config.train.steps_per_dispatch
    num_steps = n * (1 + _REPEATS)
    config = config.replace({"train.num_steps": num_steps, "train.eval_every": num_steps})
    trainer = Trainer(config, corpus, make_mesh(config))
    trainer.initialize()
    rows = list(trainer.run(0, num_steps))[1:]
    characters = config.data.batch_size * config.model.block_size
    flops = train_flops_per_character(config.model, trainer.model.vocab_size)
    return Measurement(
        f"train step, batch {config.data.batch_size}",
        statistics.median(row["seconds"] / n for row in rows),
        characters,
        flops=characters * flops,
        compile_seconds=trainer.compile_seconds,
    )


def measure_evaluation(model: GPT, params: Any, ids: np.ndarray) -> Measurement:
    """Time the exact evaluation of a whole text."""
    seconds = median_seconds(lambda: evaluate(model, params, ids).loss, 3)
    flops = len(ids) * train_flops_per_character(model.config, model.vocab_size) / 3
    return Measurement("evaluate the validation split", seconds, len(ids), flops=flops)


def measure_prefill(model: GPT, params: Any, batch_size: int) -> Measurement:
    """Time reading one full window per row and writing a character."""
    n_time = model.config.block_size
    window_BxT = np.zeros((batch_size, n_time), np.int32)
    contexts_B, seeds_B = np.full(batch_size, n_time), np.arange(batch_size, dtype=np.uint32)
    sampling = sampler.Sampling(0.8)
    seconds = median_seconds(
        lambda: sampler.prefill(model, params, window_BxT, contexts_B, seeds_B, 0, sampling)[1]
    )
    characters = batch_size * n_time
    flops = characters * train_flops_per_character(model.config, model.vocab_size) / 3
    return Measurement(f"prefill, batch {batch_size}", seconds, characters, flops=flops)


def measure_sampling(model: GPT, params: Any, batch_size: int) -> Measurement:
    """Time writing from a short prompt until the window is full, prefill included."""
    prompts, seeds = [np.zeros(1, np.int32)] * batch_size, list(range(batch_size))
    n_new = model.config.block_size
    sampling = sampler.Sampling(0.8)

    def write() -> int:
        chunks = sampler.generate_ids(model, params, prompts, seeds, n_new, sampling, n_new // 2)
        return sum(chunk.size for chunk in chunks)

    # Every character reads all weights but the embeddings once, whatever the batch.
    embeddings = params["wte"]["embedding"].size + params["wpe"]["embedding"].size
    weights = sum(p.size for p in jax.tree.leaves(params)) - embeddings
    n_byte = jnp.dtype(compute_dtype(model.config)).itemsize
    return Measurement(
        f"sample, batch {batch_size}",
        median_seconds(write),
        n_new * batch_size,
        bytes=float(n_new * weights * n_byte),
    )


def benchmark(config: Config, corpus: Corpus, sample_batches: list[int]) -> dict[str, Any]:
    """Measure everything.

    Args:
        config: shapes and types, frozen.
        corpus: what is trained on and evaluated.
        sample_batches: batch sizes to sample at.

    Returns:
        `machine`; `ceilings`; `results`, a row per kind of work; `peak_memory_bytes`, of the
        device, or of the process on a CPU.
    """
    model = GPT(config.model, corpus.tokenizer.vocab_size)
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    measurements = [
        measure_training(config, corpus),
        measure_evaluation(model, params, corpus.val_ids),
        measure_prefill(model, params, 1),
        *(measure_sampling(model, params, size) for size in sample_batches),
    ]
    peak_memory_bytes = _peak_memory_bytes()
    ceilings = measure_ceilings(compute_dtype(config.model))  # last, since they take much memory
    return {
        "machine": _machine(),
        "ceilings": ceilings,
        "results": [measurement.to_row(ceilings) for measurement in measurements],
        "peak_memory_bytes": peak_memory_bytes,
    }


def main() -> None:
    """Run the command line; --help lists its flags."""
    as_json = flags.DEFINE_bool("json", False, "print one JSON object")
    batches = flags.DEFINE_multi_integer("sample_batch", [1, 32], "batch sizes to sample at")
    config, _ = parse_flags(sys.argv)
    use_compilation_cache()
    corpus = load_corpus(config.data.path, config.model.block_size)
    report = benchmark(config, corpus, batches.value)
    if as_json.value:
        print(json.dumps(report, indent=2))
    else:
        _print(report)


def _print(report: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    ceilings = report["ceilings"]
    console.print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    console.print(
        f"ceilings: {ceilings['flops_per_second'] / 1e9:,.0f} GFLOP/s in a large matmul, "
        f"{ceilings['bytes_per_second'] / 1e9:,.0f} GB/s of memory"
    )
    table = Table("work", "time", "compilation", "characters/s", "achieved", "of the ceiling")
    for row in report["results"]:
        unit = "flops" if "flops_per_second" in row else "bytes"
        table.add_row(
            row["work"],
            f"{row['seconds'] * 1e3:,.1f} ms",
            f"{row['compile_seconds']:.1f} s" if row["compile_seconds"] else "",
            f"{row['characters_per_second']:,.0f}",
            f"{row[f'{unit}_per_second'] / 1e9:,.1f} G{unit.upper()}/s",
            f"{row['share_of_ceiling']:.0%}",
        )
    console.print(table)
    console.print(f"peak memory {report['peak_memory_bytes'] / 1e9:.2f} GB")


def _machine() -> dict[str, Any]:
    packages = ("jax", "flax", "optax", "numpy")
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _peak_memory_bytes() -> int:
    stats = jax.devices()[0].memory_stats() or {}
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(stats.get("peak_bytes_in_use") or kilobytes * 1024)


@jax.jit
def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    return a @ b


@functools.partial(jax.jit, donate_argnums=0)
def _negate(a: jax.Array) -> jax.Array:
    return -a


if __name__ == "__main__":
    run_command(main)
