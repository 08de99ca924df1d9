"""4 layers, 4 heads, 128 dimensions, window 64, batch 12: minutes on two CPU cores."""

from shakegpt_jax.config import Config


def get_config() -> Config:
    """Return nanoGPT's CPU shape, with a schedule that fits it."""
    config = Config()
    config.model.n_layer = 4
    config.model.n_head = 4
    config.model.n_embd = 128
    config.model.block_size = 64
    config.model.init_stddev = 0.08  # 1.64 instead of 1.69 with GPT-2's 0.02
    config.data.batch_size = 12
    config.mesh.data = 1  # so small a batch does not divide
    config.optimizer.learning_rate = 3e-3
    config.train.num_steps = 2_800
    config.train.eval_every = 700
    return config
