"""2 layers, 2 heads, 128 dimensions, window 64, batch 12: 80 seconds on two CPU cores."""

from shakegpt_jax.config import Config


def get_config() -> Config:
    """Return the best config found for a minute; docs/log.md has the trials."""
    config = Config()
    config.model.n_layer = 2
    config.model.n_head = 2
    config.model.n_embd = 128
    config.model.block_size = 64
    config.model.init_stddev = 0.08  # GPT-2's 0.02 was worse, with 4 layers
    config.data.batch_size = 12
    config.mesh.data = 1  # the batch is too small to split
    config.optimizer.learning_rate = 3e-3
    config.train.num_steps = 5_000
    config.data.replacement = False
    config.optimizer.decay = "linear"
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 0.1
    config.train.eval_every = 1_000
    return config
