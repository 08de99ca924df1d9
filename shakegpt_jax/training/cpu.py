"""What a CPU can do: how long a config takes there, and whether its parameters fit."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import Corpus
from shakegpt_jax.errors import UserError
from shakegpt_jax.model.flops import train_flops_per_character
from shakegpt_jax.reporting.terminal import format_duration

_CPU_FLOPS = 1e11  # FLOP/s in large matmuls, about those of a laptop or two server cores
_SLOW_SECONDS = 10.0
_LONGEST_DISPATCH_SECONDS = 3.0


def adapt_to_cpu(config: Config, corpus: Corpus, report: Callable[[str], object]) -> Config:
    """On a CPU, report that a config will be slow, and shorten the dispatches to a few seconds.

    Signals are handled between dispatches.
    """
    if jax.default_backend() != "cpu":
        return config
    flops = train_flops_per_character(config.model, corpus.tokenizer.vocab_size)
    step_flops = flops * config.data.batch_size * config.model.block_size
    step = step_flops / _CPU_FLOPS
    n_scored = min(len(corpus.val_ids), config.train.eval_characters or len(corpus.val_ids))
    evaluation = flops / 3 * n_scored / _CPU_FLOPS
    if step + evaluation > _SLOW_SECONDS:
        n_evaluation = math.ceil(config.train.num_steps / config.train.eval_every)
        total = step * config.train.num_steps + evaluation * n_evaluation
        report(
            f"at {_CPU_FLOPS / 1e9:.0f} GFLOP/s one step takes {format_duration(step)}, one "
            f"evaluation {format_duration(evaluation)} and the whole run {format_duration(total)}: "
            "a GPU is faster, and so is --config cpu"
        )
    # Estimated rather than measured, so that a resumed run has the same chunks and stays bit-exact.
    longest = max(1, int(_LONGEST_DISPATCH_SECONDS * _CPU_FLOPS / step_flops))
    longest = min(config.train.steps_per_dispatch, longest)
    return config.replace({"train.steps_per_dispatch": longest})


def check_memory(config: Config, vocab_size: int, mesh: Mesh) -> None:
    """Check that parameters, gradients and moments fit into the memory of a CPU."""
    if jax.default_backend() != "cpu":
        return
    model = config.model
    matrices = model.n_layer * 12 * model.n_embd**2
    rest = (2 * vocab_size + model.block_size + 2 + 13 * model.n_layer) * model.n_embd
    # Float32: parameter, gradient, and two moments; of matrices, Muon has one.
    n_byte = 16 * rest + (12 if config.optimizer.name == "muon" else 16) * matrices
    # Devices along the axis `data` have copies of all.
    needed, available = n_byte * mesh.shape["data"] // jax.process_count(), memory_limit()
    if needed > available:
        raise UserError(
            f"a model of {matrices + rest:,} parameters needs at least {needed / 1e9:,.1f} GB to "
            f"train, and this process may use {available / 1e9:,.1f} GB; choose a smaller "
            f"config.model.n_layer ({model.n_layer}) or n_embd ({model.n_embd})"
            + f", or config.mesh.data=1 (it is {mesh.shape['data']})"
            * (mesh.shape["data"] > 1)
        )


def memory_limit(root: Path = Path("/")) -> int:
    """Return the bytes that this process may use: physical memory, or the limit of a cgroup."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    own = root / "proc/self/cgroup"
    for line in own.read_text().splitlines() if own.exists() else []:  # absent outside Linux
        _, controllers, group = line.split(":", 2)
        versions = {"": "memory.max", "memory": "memory/memory.limit_in_bytes"}
        folder, _, name = versions.get(controllers, "").rpartition("/")
        path = root / "sys/fs/cgroup" / folder / group.lstrip("/")
        # In a container, the path may be that of the host, which is not visible.
        texts = [
            (each / name).read_text() for each in (path, *path.parents) if (each / name).is_file()
        ]
        limits += [int(text) for text in texts if text.strip() != "max"]
    return min(limits)
