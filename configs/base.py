"""12 layers, 8 heads, 768 dimensions, window 128, batch 128: 85 million parameters, for a GPU."""

from shakegpt_jax.config import Config


def get_config() -> Config:
    """Return the defaults, with the regularization that the shape needs."""
    config = Config()
    # 85 million parameters on one million characters: without it the model learns them by heart.
    config.model.dropout = 0.2
    return config
