"""Speed of training, evaluation and sampling against the limits of the default device."""

import dataclasses
import functools
import importlib.metadata
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import Corpus, load_corpus
from shakegpt_jax.inference import TEMPERATURE
from shakegpt_jax.inference.decoding import prefill
from shakegpt_jax.inference.sampler import generate_ids
from shakegpt_jax.inference.sampling import Sampling
from shakegpt_jax.inference.scoring import evaluate
from shakegpt_jax.model.attention import cudnn_attends
from shakegpt_jax.model.flops import train_flops_per_character
from shakegpt_jax.model.gpt import GPT, init_params
from shakegpt_jax.model.layers import compute_dtype
from shakegpt_jax.sharding import make_mesh
from shakegpt_jax.training.trainer import Trainer

REPEATS = 5


def median_seconds(run: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Time a function and wait for its result; a first run, which compiles, is not counted."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_ceilings(dtype: DTypeLike, weights_bytes: int) -> dict[str, float]:
    """Measure `flops_per_second` in large matmuls and the bytes per second of reading.

    `bytes_per_second` is that of a large matrix, which memory bounds. `weights_bytes_per_second`
    is that of a matrix of `weights_bytes`, which a cache may hold.
    """
    size, n_byte, times = (2_048, 2**28, 1) if _on_cpu() else (8_192, 2**30, 10)
    square = _random_matrix(size, dtype)
    seconds = median_seconds(lambda: _multiply(square, square, times))
    return {
        "flops_per_second": 2 * times * size**3 / seconds,
        "bytes_per_second": _measure_reading(n_byte, dtype),
        "weights_bytes": weights_bytes,
        "weights_bytes_per_second": _measure_reading(weights_bytes, dtype),
    }


def _measure_reading(n_byte: int, dtype: DTypeLike) -> float:
    """Return the bytes per second at which matrix-vector products read a matrix of a size."""
    matrix = _random_matrix(max(1, round((n_byte / jnp.dtype(dtype).itemsize) ** 0.5)), dtype)
    times = max(1, (2**30 if _on_cpu() else 2**35) // matrix.nbytes)
    return times * matrix.nbytes / median_seconds(lambda: _multiply(matrix, matrix[0], times))


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _random_matrix(size: int, dtype: DTypeLike) -> jax.Array:
    """Return a matrix that keeps the length of vectors. Some devices multiply zeros faster."""
    return jax.random.normal(jax.random.key(0), (size, size), dtype) / size**0.5


# In one call, since to dispatch it and to wait for it takes 0.5 ms on an NVIDIA H200.
@functools.partial(jax.jit, static_argnums=2)
def _multiply(a: jax.Array, b: jax.Array, times: int) -> jax.Array:
    return jax.lax.fori_loop(0, times, lambda _, b: a @ b, b, unroll=min(times, 8))


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
        ceiling = "flops_per_second" if self.flops else "weights_bytes_per_second"
        return {
            "work": self.work,
            "seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
            "characters_per_second": self.characters / self.seconds,
            f"{unit}_per_second": rate,
            "share_of_ceiling": rate / ceilings[ceiling],
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
    sampling = Sampling(TEMPERATURE)
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
    sampling = Sampling(TEMPERATURE)

    def generate() -> int:
        chunks = generate_ids(model, params, prompts, seeds, n_new, sampling, n_new // 2)
        return sum(row.size for chunk in chunks for row in chunk)

    return Measurement(
        f"sample, batch {batch_size}",
        median_seconds(generate),
        n_new * batch_size,
        bytes=float(n_new * weights_bytes(model, params)),
    )


def weights_bytes(model: GPT, params: Any) -> int:
    """Return what every step of sampling reads, for any batch size: all but the embeddings."""
    embeddings = params["wte"]["embedding"].size + params["wpe"]["embedding"].size
    weights = sum(p.size for p in jax.tree.leaves(params)) - embeddings
    return weights * jnp.dtype(compute_dtype(model.config)).itemsize


def benchmark(
    config: Config, corpus: Corpus, work: Collection[str], sample_batches: Sequence[int]
) -> dict[str, Any]:
    """Measure work, any of "train", "evaluate", "prefill" and "sample", and the ceilings.

    `peak_memory_bytes` is that of the device, or of the process on a CPU.
    """
    model = GPT(config.model, corpus.tokenizer.vocab_size)
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    measured = []
    if "train" in work:
        measured.append(measure_training(config, corpus))
    if "evaluate" in work:
        measured.append(measure_evaluation(model, params, corpus.val_ids[:_MAX_EVALUATED]))
    if "prefill" in work:
        measured.append(measure_prefill(model, params, 1))
    if "sample" in work:
        measured += [measure_sampling(model, params, size) for size in sample_batches]
    peak_memory_bytes = _peak_memory_bytes()
    # Last: the ceilings need much memory.
    ceilings = measure_ceilings(compute_dtype(config.model), weights_bytes(model, params))
    return {
        "machine": _machine() | {"attention": "cuDNN" if cudnn_attends(config.model) else "JAX"},
        "ceilings": ceilings,
        "results": [measurement.to_row(ceilings) for measurement in measured],
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


_DOUBLINGS = 3
_STEPS_PER_DISPATCH = 4

# Exponents if matmuls dominate. Attention raises that of the window.
EXPECTED_EXPONENTS = {
    "model.n_layer": 1.0,
    "model.n_embd": 2.0,
    "model.block_size": 1.0,
    "data.batch_size": 1.0,
}


def measure_scaling(config: Config) -> dict[str, tuple[list[int], list[float], float]]:
    """Double each field of `EXPECTED_EXPONENTS` repeatedly.

    Returns:
        By field its values, the seconds per step, and the exponent of the fit seconds = c * value
        ** exponent by least squares of the logarithms.
    """
    growth = {}
    for field in EXPECTED_EXPONENTS:
        section, name = field.split(".")
        first = getattr(getattr(config, section), name)
        values = [first * 2**doubling for doubling in range(_DOUBLINGS + 1)]
        seconds = [step_seconds(config.replace({field: value})) for value in values]
        exponent = float(np.polyfit(np.log(values), np.log(seconds), 1)[0])
        growth[field] = values, seconds, exponent
    return growth


def step_seconds(config: Config) -> float:
    """Time one training step of a config, without compilation; the median of several."""
    corpus = load_corpus(config.data.path, config.model.block_size)
    few = config.replace({"train.steps_per_dispatch": _STEPS_PER_DISPATCH})
    return measure_training(few, corpus).seconds
