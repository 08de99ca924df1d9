"""4 layers, 3 heads, 192 dimensions, window 128, Muon: eight to ten minutes on two cores."""

from shakegpt_jax.config import Config


def get_config() -> Config:
    """Return the best config found for this time; docs/log.md has the trials."""
    config = Config()
    config.model.n_layer = 4
    config.model.n_head = 3
    config.model.n_embd = 192
    # No dropout: in five epochs it underfits.
    config.data.batch_size = 24
    config.data.replacement = False
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 6e-3
    config.optimizer.decay = "linear"
    config.optimizer.weight_decay = 0.3
    config.optimizer.adam_weight_decay = 0.1
    config.train.num_steps = 1_800
    config.train.eval_every = 450
    return config
