"""Measurements of training, evaluation and sampling.

Each time is the median of several repeats, after a first run that compiles.
"""

import dataclasses
import importlib.metadata
import os
import resource
import statistics
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import Corpus
from shakegpt_jax.inference import defaults
from shakegpt_jax.inference.decoding import prefill
from shakegpt_jax.inference.sampler import generate_ids
from shakegpt_jax.inference.sampling import Sampling
from shakegpt_jax.inference.scoring import evaluate
from shakegpt_jax.model.attention import cudnn_attends
from shakegpt_jax.model.flops import train_flops_per_character
from shakegpt_jax.model.gpt import GPT, init_params
from shakegpt_jax.model.precision import compute_dtype
from shakegpt_jax.parallel.mesh import make_mesh
from shakegpt_jax.profiling.timing import REPEATS, measure_ceilings, median_seconds
from shakegpt_jax.training.trainer import Trainer

_MAX_EVALUATED = 2**20  # characters of a long validation split to time


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Time and amount of one kind of work."""

    work: str
    seconds: float  # median of the repeats
    characters: int  # of one repeat
    flops: float | None = None  # of compute-bound work
    bytes: float | None = None  # of memory-bound work: the least that must be read
    compile_seconds: float | None = None  # if compilation was timed

    def to_row(self, ceilings: dict[str, float]) -> dict[str, Any]:
        """Return rates per second, and the share of the ceiling that bounds this work."""
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


def measure_training(config: Config, corpus: Corpus) -> Measurement:
    """Time one optimizer step; `config.train.steps_per_dispatch` of them are one repeat."""
    n = config.train.steps_per_dispatch
    num_steps = n * (1 + REPEATS)
    config = config.replace({"train.num_steps": num_steps, "train.eval_every": num_steps})
    trainer = Trainer(config, corpus, make_mesh(config))
    trainer.initialize()
    rows = list(trainer.run(0, num_steps))[1:]
    characters = config.data.batch_size * config.model.block_size
    flops = train_flops_per_character(config.model, trainer.model.vocab_size)
    return Measurement(
        f"train step, batch {config.data.batch_size}",
        statistics.median(row.seconds / n for row in rows),
        characters,
        flops=characters * flops,
        compile_seconds=trainer.compile_seconds,
    )


def measure_evaluation(model: GPT, params: Any, ids: np.ndarray) -> Measurement:
    """Time the evaluation of a text."""
    seconds = median_seconds(lambda: evaluate(model, params, ids).loss, 3)
    flops = len(ids) * train_flops_per_character(model.config, model.vocab_size) / 3
    return Measurement("evaluation", seconds, len(ids), flops=flops)


def measure_prefill(model: GPT, params: Any, batch_size: int) -> Measurement:
    """Time prefilling a full window per row and sampling one character."""
    n_time = model.config.block_size
    window_BxT = np.zeros((batch_size, n_time), np.int32)
    context_lengths_B, seeds_B = np.full(batch_size, n_time), np.arange(batch_size, dtype=np.uint32)
    sampling = Sampling(defaults.TEMPERATURE)
    seconds = median_seconds(
        lambda: prefill(model, params, window_BxT, context_lengths_B, seeds_B, 0, sampling)[1]
    )
    characters = batch_size * n_time
    flops = characters * train_flops_per_character(model.config, model.vocab_size) / 3
    return Measurement(f"prefill, batch {batch_size}", seconds, characters, flops=flops)


def measure_sampling(model: GPT, params: Any, batch_size: int) -> Measurement:
    """Time generating from one character until the window is full, prefill included."""
    prompts, seeds = [np.zeros(1, np.int32)] * batch_size, list(range(batch_size))
    n_new = model.config.block_size
    sampling = Sampling(defaults.TEMPERATURE)

    def generate() -> int:
        chunks = generate_ids(model, params, prompts, seeds, n_new, sampling, n_new // 2)
        return sum(row.size for chunk in chunks for row in chunk)

    # Every step reads all weights but the embeddings once, for any batch size.
    embeddings = params["wte"]["embedding"].size + params["wpe"]["embedding"].size
    weights = sum(p.size for p in jax.tree.leaves(params)) - embeddings
    n_byte = jnp.dtype(compute_dtype(model.config)).itemsize
    return Measurement(
        f"sample, batch {batch_size}",
        median_seconds(generate),
        n_new * batch_size,
        bytes=float(n_new * weights * n_byte),
    )


def benchmark(config: Config, corpus: Corpus, sample_batches: list[int]) -> dict[str, Any]:
    """Measure training, evaluation, prefill and sampling.

    Args:
        config: frozen config.
        corpus: text to train on and evaluate.
        sample_batches: batch sizes to sample at.

    Returns:
        `machine`; `ceilings`; `results`, a row per kind of work; `peak_memory_bytes` of the
        device, or of the process on a CPU.
    """
    model = GPT(config.model, corpus.tokenizer.vocab_size)
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    measurements = [
        measure_training(config, corpus),
        measure_evaluation(model, params, corpus.val_ids[:_MAX_EVALUATED]),
        measure_prefill(model, params, 1),
        *(measure_sampling(model, params, size) for size in sample_batches),
    ]
    peak_memory_bytes = _peak_memory_bytes()
    ceilings = measure_ceilings(compute_dtype(config.model))  # last: they need much memory
    return {
        "machine": _machine() | {"attention": "cuDNN" if cudnn_attends(config.model) else "JAX"},
        "ceilings": ceilings,
        "results": [measurement.to_row(ceilings) for measurement in measurements],
        "peak_memory_bytes": peak_memory_bytes,
    }


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
