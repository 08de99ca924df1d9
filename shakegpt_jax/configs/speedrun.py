"""6 layers, 4 heads, 256 dimensions, window 256, Muon: seventeen minutes on two cores."""

from shakegpt_jax.config import Config


def get_config() -> Config:
    """Return the best config found for this time; docs/log.md has the trials."""
    config = Config()
    config.model.n_layer = 6
    config.model.n_head = 4
    config.model.n_embd = 256
    config.model.block_size = 256
    config.data.batch_size = 16
    config.data.replacement = False
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 6e-3
    config.optimizer.decay = "linear"
    config.optimizer.weight_decay = 0.3
    config.optimizer.adam_weight_decay = 0.1
    config.train.num_steps = 1_150
    config.train.eval_every = 290
    return config
