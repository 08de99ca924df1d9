"""Speed of training, evaluation and sampling against the limits of the default device."""

import functools
import importlib.metadata
import operator
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import Corpus, load_corpus
from shakegpt_jax.inference import TEMPERATURE
from shakegpt_jax.inference.decoding import for_decoding, prefill
from shakegpt_jax.inference.sampler import generate_ids
from shakegpt_jax.inference.sampling import Sampling
from shakegpt_jax.inference.scoring import evaluate
from shakegpt_jax.model.attention import cudnn_attends
from shakegpt_jax.model.gpt import GPT, init_params, train_flops_per_character
from shakegpt_jax.model.linear import compute_dtype, describe_dtypes, operand_dtype
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


def measure_ceilings(
    dtype: DTypeLike, result_dtype: DTypeLike, weights_bytes: int
) -> dict[str, float]:
    """Measure FLOP/s in large matmuls, and bytes/s of reading a large matrix from memory.

    `weights_bytes_per_second` is that of a matrix of `weights_bytes`, which a cache may hold.
    """
    on_cpu = jax.default_backend() == "cpu"
    size, n_byte, times = (2_048, 2**28, 1) if on_cpu else (8_192, 2**30, 10)

    def random_matrix(size: int, dtype: DTypeLike) -> jax.Array:
        """Return a matrix that keeps the length of vectors. Some devices multiply zeros faster."""
        return jax.random.normal(jax.random.key(0), (size, size), dtype) / size**0.5

    def bytes_per_second(n_byte: int) -> float:
        dtype = result_dtype  # XLA on CPUs multiplies vectors slowly in bfloat16
        matrix = random_matrix(max(1, round((n_byte / jnp.dtype(dtype).itemsize) ** 0.5)), dtype)
        times = max(1, (2**30 if on_cpu else 2**35) // matrix.nbytes)
        seconds = median_seconds(lambda: _multiply(matrix, matrix[0], times, dtype))
        return times * matrix.nbytes / seconds

    square = random_matrix(size, dtype)
    seconds = median_seconds(lambda: _multiply(square, square, times, result_dtype))
    return {
        "flops_per_second": 2 * times * size**3 / seconds,
        "bytes_per_second": bytes_per_second(n_byte),
        "weights_bytes": weights_bytes,
        "weights_bytes_per_second": bytes_per_second(weights_bytes),
    }


# In one call, since to dispatch it and to wait for it takes 0.5 ms on an NVIDIA H200.
@functools.partial(jax.jit, static_argnums=(2, 3))
def _multiply(a: jax.Array, b: jax.Array, times: int, result_dtype: DTypeLike) -> jax.Array:
    def multiply(_: int, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, preferred_element_type=result_dtype).astype(a.dtype)

    return jax.lax.fori_loop(0, times, multiply, b, unroll=min(times, 8))


_MAX_EVALUATED = 2**20  # characters of a long validation split to time
_CPU_FLOPS = 1e12  # of one repeat on a CPU, about: 3 to 10 seconds on two cores


def _affordable(n: int, flops: float) -> int:
    """Limit n on a CPU, so that n times `flops` take a few seconds."""
    on_cpu = jax.default_backend() == "cpu"
    return min(n, max(1, round(_CPU_FLOPS / flops))) if on_cpu else n


class Measurement(NamedTuple):
    """Time and amount of one kind of work."""

    work: str
    seconds: float  # median of the repeats
    characters: int  # of one repeat
    unit: str  # "flops" of compute-bound work, or "bytes": the least that must be read
    amount: float  # in that unit
    compile_seconds: float | None = None  # if compilation was timed

    def to_row(self, ceilings: dict[str, float]) -> dict[str, Any]:
        """Return rates per second, and the share of the ceiling that bounds this work."""
        rate = self.amount / self.seconds
        ceiling = "flops_per_second" if self.unit == "flops" else "weights_bytes_per_second"
        return {
            "work": self.work,
            "seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
            "characters_per_second": self.characters / self.seconds,
            f"{self.unit}_per_second": rate,
            "share_of_ceiling": rate / ceilings[ceiling],
        }


def measure_training(config: Config, corpus: Corpus) -> Measurement:
    """Time one optimizer step; up to `config.train.steps_per_dispatch` of them are one repeat."""
    characters = config.data.batch_size * config.model.block_size
    flops = characters * train_flops_per_character(config.model, corpus.tokenizer.vocab_size)
    n = _affordable(config.train.steps_per_dispatch, flops)
    config = config.replace({"train.steps_per_dispatch": n})
    num_steps = n * (1 + REPEATS)
    config = config.replace({"train.num_steps": num_steps, "train.eval_every": num_steps})
    trainer = Trainer(config, corpus, make_mesh(config))
    trainer.initialize()
    speeds = [row.characters_per_second for row in trainer.run(0, num_steps)]
    return Measurement(
        f"train step, batch {config.data.batch_size}",
        characters / statistics.median(speeds[1:]),
        characters,
        "flops",
        flops,
        trainer.compile_seconds,
    )


def measure_evaluation(model: GPT, params: Any, ids: np.ndarray) -> Measurement:
    """Time the evaluation of a text."""
    seconds = median_seconds(lambda: evaluate(model, params, ids).loss, 3)
    return Measurement("evaluation", seconds, len(ids), "flops", _forward_flops(model, len(ids)))


def measure_prefill(model: GPT, params: Any) -> Measurement:
    """Time prefilling a full window and sampling one character."""
    n_time = model.config.block_size
    window_1xT, context_lengths_1 = np.zeros((1, n_time), np.int32), np.array([n_time])
    seeds_1, sampling = np.zeros(1, np.uint32), Sampling(TEMPERATURE)
    seconds = median_seconds(
        lambda: prefill(model, params, window_1xT, context_lengths_1, seeds_1, 0, sampling)[1]
    )
    return Measurement("prefill, batch 1", seconds, n_time, "flops", _forward_flops(model, n_time))


def _forward_flops(model: GPT, n_character: int) -> float:
    return n_character * train_flops_per_character(model.config, model.vocab_size) / 3


def measure_sampling(model: GPT, params: Any, batch_size: int) -> Measurement:
    """Time generating from one character until the window is full, prefill included."""
    prompts, seeds = [np.zeros(1, np.int32)] * batch_size, list(range(batch_size))
    n_new, sampling = model.config.block_size, Sampling(TEMPERATURE)
    seconds = median_seconds(
        lambda: list(generate_ids(model, params, prompts, seeds, n_new, sampling, n_new // 2))
    )
    n_byte = n_new * weights_bytes(model, params)
    return Measurement(f"sample, batch {batch_size}", seconds, n_new * batch_size, "bytes", n_byte)


def weights_bytes(model: GPT, params: Any) -> int:
    """Return what every step of sampling reads, for any batch size: all but the embeddings."""
    embeddings = params["wte"]["embedding"].size + params["wpe"]["embedding"].size
    weights = sum(p.size for p in jax.tree.leaves(params)) - embeddings
    return weights * jnp.dtype(operand_dtype(model.config)).itemsize


def benchmark(
    config: Config, corpus: Corpus, work: Collection[str], sample_batches: Sequence[int]
) -> dict[str, Any]:
    """Measure work, any of "train", "evaluate", "prefill" and "sample", and the ceilings."""
    model = GPT(config.model, corpus.tokenizer.vocab_size)
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    measured = []
    if "train" in work:
        measured.append(measure_training(config, corpus))
    if "evaluate" in work:
        n = 1 + _affordable(_MAX_EVALUATED, _forward_flops(model, 1))
        measured.append(measure_evaluation(model, params, corpus.val_ids[:n]))
    decoding = for_decoding(model, params)
    if "prefill" in work:
        measured.append(measure_prefill(*decoding))
    if "sample" in work:
        measured += [measure_sampling(*decoding, size) for size in sample_batches]
    stats = jax.devices()[0].memory_stats() or {}
    process_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # Last: the ceilings need much memory.
    dtypes = operand_dtype(config.model), compute_dtype(config.model)
    ceilings = measure_ceilings(*dtypes, weights_bytes(*decoding))
    packages = ("jax", "flax", "optax", "numpy")
    return {
        "machine": {
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
            "matmuls": describe_dtypes(config.model),
            "attention": "cuDNN" if cudnn_attends(config.model) else "JAX",
        },
        "ceilings": ceilings,
        "results": [measurement.to_row(ceilings) for measurement in measured],
        "peak_memory_bytes": int(stats.get("peak_bytes_in_use") or process_bytes),
    }


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

    Returns by field its values, the seconds per step, and the exponent of the fit seconds = c *
    value ** exponent by least squares of the logarithms.
    """
    config = config.replace({"train.steps_per_dispatch": _STEPS_PER_DISPATCH})
    corpus = load_corpus(config.data.path, config.model.block_size * 2**_DOUBLINGS)
    growth = {}
    for field in EXPECTED_EXPONENTS:
        first = operator.attrgetter(field)(config)
        values = [first * 2**doubling for doubling in range(_DOUBLINGS + 1)]
        configs = [config.replace({field: value}) for value in values]
        seconds = [measure_training(each, corpus).seconds for each in configs]
        exponent = float(np.polyfit(np.log(values), np.log(seconds), 1)[0])
        growth[field] = values, seconds, exponent
    return growth
