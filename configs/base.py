"""12 layers, 8 heads, 768 dimensions, window 128, batch 128: 85 million parameters, for a GPU."""

from shakegpt_jax.config import Config


def get_config() -> Config:
    """Return the default shape, with a schedule and dropout for a text of a million characters."""
    config = Config()
    # Each step reads 16,384 of the million characters to learn: this is 33 times through them.
    config.train.num_steps = 2_000
    config.train.eval_every = 100  # it overfits at some point, and the best checkpoint is kept
    config.model.dropout = 0.2  # as in nanoGPT's recipe for this text
    config.optimizer.learning_rate = 6e-4  # GPT-3's for 125 million parameters
    return config
