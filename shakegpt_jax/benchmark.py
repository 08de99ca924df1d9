"""Measure speed against this machine's own ceilings.

    python -m shakegpt_jax.benchmark --config configs/cpu.py [--config.data.batch_size=4 ...]

Each figure is the median of several repeats, compilation left out and given apart. The ceilings
are a large matmul in the config's compute type, and a large copy, bytes read and written counted.
"""

import dataclasses
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
from rich.console import Console
from rich.table import Table

from shakegpt_jax import sampler
from shakegpt_jax.cli import run_command
from shakegpt_jax.config import Config
from shakegpt_jax.data import Corpus, load_corpus
from shakegpt_jax.evaluate import evaluate
from shakegpt_jax.flags import parse_flags
from shakegpt_jax.model import GPT, compute_dtype, train_flops_per_character
from shakegpt_jax.train import Trainer

_JSON = flags.DEFINE_bool("json", False, "print one JSON object")
_BATCHES = flags.DEFINE_multi_integer("sample_batch", [1, 32], "batch sizes to sample at")

_REPEATS = 5
_NEW_TOKENS = 256


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One figure; rates are per second, shares are of the ceiling that bounds the work."""

    work: str
    seconds: float  # median of one repeat
    compile_seconds: float | None = None
    characters: float | None = None  # of a repeat
    flops: float | None = None
    bytes: float | None = None

    def row(self, ceilings: dict[str, float]) -> dict[str, Any]:
        """Turn it into rates, and shares of the ceilings."""
        row: dict[str, Any] = {"work": self.work, "seconds": self.seconds}
        row["compile_seconds"] = self.compile_seconds
        row["characters_per_second"] = self.characters and self.characters / self.seconds
        for amount, rate, ceiling in (
            (self.flops, "flops_per_second", "matmul_flops_per_second"),
            (self.bytes, "bytes_per_second", "copy_bytes_per_second"),
        ):
            row[rate] = amount and amount / self.seconds
            row[f"share_of_{ceiling}"] = amount and amount / self.seconds / ceilings[ceiling]
        return row


def measure(run: Callable[[], Any], repeats: int = _REPEATS) -> tuple[float, float]:
    """Time a function whose result says when it is done.

    Returns:
        Median seconds of `repeats` runs, and the seconds that a first run took more, which is
        compilation for the most part.
    """
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])
    return median, max(0.0, seconds[0] - median)


def measure_ceilings(dtype: Any) -> dict[str, float]:
    """Measure what the default device can do: a large matmul's FLOP/s, a large copy's bytes/s."""
    on_cpu = jax.default_backend() == "cpu"
    size, length = (2_048, 2**27) if on_cpu else (8_192, 2**31)
    # Random numbers: some devices multiply zeros faster.
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    matmul_seconds, _ = measure(lambda: _matmul(a, a))
    source = jnp.ones(length // 4)
    copy_seconds, _ = measure(lambda: _negative(source))
    return {
        "matmul_flops_per_second": 2 * size**3 / matmul_seconds,
        "copy_bytes_per_second": 2 * length / copy_seconds,
    }


def measure_training(trainer: Trainer) -> Measurement:
    """Time one optimizer step, `steps_per_chunk` of them per dispatch."""
    config = trainer.config
    chunk = min(config.train.steps_per_dispatch, config.train.eval_every, config.train.num_steps)
    rows = trainer.run(0, chunk * (1 + _REPEATS))
    seconds = [row["seconds"] / chunk for row in rows]
    characters = config.data.batch_size * config.model.block_size
    vocab_size = trainer.corpus.tokenizer.vocab_size
    return Measurement(
        f"train step, batch {config.data.batch_size}",
        statistics.median(seconds[1:]),
        trainer.compile_seconds,
        characters,
        flops=characters * train_flops_per_character(config.model, vocab_size),
    )


def measure_evaluation(trainer: Trainer) -> Measurement:
    """Time the evaluation of the whole validation split."""
    model, ids = trainer.model, trainer.corpus.val_ids
    params = trainer.state.params
    seconds, compile_seconds = measure(lambda: evaluate(model, params, ids).loss)
    flops = train_flops_per_character(model.config, model.vocab_size) / 3  # no backward pass
    return Measurement(
        "evaluate the validation split", seconds, compile_seconds, len(ids), len(ids) * flops
    )


def measure_sampling(model: GPT, params: Any, batch_size: int) -> Measurement:
    """Time writing from a short prompt, past the window, for so many rows at once."""
    prompts, seeds = [np.arange(13)] * batch_size, list(range(batch_size))
    n_slot = model.config.block_size
    sampling = sampler.Sampling(0.8)

    def write() -> int:
        chunks = sampler.generate_ids(
            model, params, prompts, seeds, _NEW_TOKENS, sampling, n_slot // 2
        )
        return sum(chunk.size for chunk in chunks)

    seconds, compile_seconds = measure(write)
    # Every step reads all weights but the embeddings' once, whatever the batch.
    weights = sum(p.size for p in jax.tree.leaves(params)) - model.vocab_size * model.config.n_embd
    n_byte = jnp.dtype(compute_dtype(model.config)).itemsize
    return Measurement(
        f"sample, batch {batch_size}",
        seconds,
        compile_seconds,
        _NEW_TOKENS * batch_size,
        bytes=float(_NEW_TOKENS * weights * n_byte),
    )


def benchmark(config: Config, corpus: Corpus, batches: list[int]) -> dict[str, Any]:
    """Measure everything.

    Returns:
        `machine`, `ceilings`, `results` (a row per measurement) and `peak_memory_bytes` (of the
        device, or of the process on a CPU).
    """
    ceilings = measure_ceilings(compute_dtype(config.model))
    trainer = Trainer(config, corpus)
    measurements = [measure_training(trainer), measure_evaluation(trainer)]
    params = trainer.state.params
    measurements += [measure_sampling(trainer.model, params, size) for size in batches]
    return {
        "machine": _machine(),
        "ceilings": ceilings,
        "results": [measurement.row(ceilings) for measurement in measurements],
        "peak_memory_bytes": _peak_memory_bytes(),
    }


def main() -> None:
    """Run the command line."""
    config, _ = parse_flags(sys.argv)
    corpus = load_corpus(config.data.path, config.model.block_size)
    report = benchmark(config, corpus, _BATCHES.value)
    if _JSON.value:
        print(json.dumps(report, indent=2))
    else:
        _print_tables(report)


def _print_tables(report: dict[str, Any]) -> None:
    console = Console(highlight=False)
    ceilings = report["ceilings"]
    console.print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    console.print(
        f"ceilings: matmul {ceilings['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s, "
        f"copy {ceilings['copy_bytes_per_second'] / 1e9:,.1f} GB/s; "
        f"peak memory {report['peak_memory_bytes'] / 1e9:.2f} GB"
    )
    table = Table("work", "time", "compile", "characters/s", "achieved", "of the ceiling")
    for row in report["results"]:
        flops, n_byte = row["flops_per_second"], row["bytes_per_second"]
        share = row["share_of_matmul_flops_per_second"] or row["share_of_copy_bytes_per_second"]
        table.add_row(
            row["work"],
            f"{row['seconds'] * 1e3:,.1f} ms",
            f"{row['compile_seconds']:.1f} s",
            f"{row['characters_per_second']:,.0f}",
            f"{flops / 1e9:,.1f} GFLOP/s" if flops else f"{n_byte / 1e9:,.1f} GB/s",
            f"{share:.0%}",
        )
    console.print(table)


def _machine() -> dict[str, Any]:
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)),
        "python": sys.version.split()[0],
        **{name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")},
    }


def _peak_memory_bytes() -> int:
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@jax.jit
def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return a @ b


@jax.jit
def _negative(a: jax.Array) -> jax.Array:
    return -a


if __name__ == "__main__":
    run_command(main)
