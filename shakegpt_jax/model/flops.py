"""FLOPs that training needs and FLOP/s that devices offer."""

from shakegpt_jax.config import ModelConfig

# Dense bfloat16 matmul peaks in FLOP/s, from the vendors' data sheets.
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}


def train_flops_per_character(config: ModelConfig, vocab_size: int) -> float:
    """Count the FLOPs of both passes: 6 per weight, and attention over a whole window.

    So counted by Chowdhery et al. 2022 (PaLM), appendix B.
    """
    weights = config.n_layer * 12 * config.n_embd**2 + vocab_size * config.n_embd
    return 6 * weights + 12 * config.n_layer * config.n_embd * config.block_size


def peak_flops(device_kind: str) -> float | None:
    """Return the bfloat16 peak of a kind of device in FLOP/s, or None if it is not known."""
    words = device_kind.replace("-", " ").split()
    return next((_PEAK_FLOPS[word] for word in words if word in _PEAK_FLOPS), None)
