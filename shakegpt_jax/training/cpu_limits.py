"""Adapts a config to a CPU: warns about large models and shortens dispatches."""

import math
from collections.abc import Callable

import jax

from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import Corpus
from shakegpt_jax.model.flops import train_flops_per_character
from shakegpt_jax.reporting.progress import format_duration

_CPU_FLOPS = 1e11  # FLOP/s in large matmuls, about those of a laptop or two server cores
_SLOW_SECONDS = 10.0
_LONGEST_DISPATCH_SECONDS = 3.0


def adapt_to_cpu(config: Config, corpus: Corpus, report: Callable[[str], object]) -> Config:
    """On a CPU, warn about a config that will be slow and shorten the dispatches.

    Signals are handled between dispatches, so each dispatch must be short.

    Args:
        config: frozen config.
        corpus: training and validation text.
        report: called with the warning.

    Returns:
        The config with `steps_per_dispatch` at most what a CPU does in a few seconds.
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
            "a GPU is faster, and so is configs/cpu.py"
        )
    # Estimated rather than measured, so that a resumed run has the same chunks and stays bit-exact.
    longest = max(1, int(_LONGEST_DISPATCH_SECONDS * _CPU_FLOPS / step_flops))
    longest = min(config.train.steps_per_dispatch, longest)
    return config.replace({"train.steps_per_dispatch": longest})
