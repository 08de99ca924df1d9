"""4 layers, 4 heads, 256 dimensions, window 256, Muon: twenty minutes on two cores."""

from shakegpt_jax.config import Config


def get_config() -> Config:
    """Return the best config scored; figures are losses on the last tenth of the training split.

    They are of one seed each, after 1,600 steps; docs/results.md has them all, and one with 6
    layers that is 0.006 better and was not scored. On the validation split this reaches 1.448.
    """
    config = Config()
    config.model.n_layer = 4
    config.model.n_head = 4
    config.model.n_embd = 256
    # With 32 windows of 128 and no dropout: 1.437 instead of 1.418, in 9% less time.
    config.model.block_size = 256
    config.model.dropout = 0.05
    config.data.batch_size = 16
    config.data.replacement = False
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 6e-3
    config.optimizer.decay = "linear"
    config.optimizer.weight_decay = 0.3
    config.optimizer.adam_weight_decay = 0.1
    config.train.num_steps = 1_700
    config.train.eval_every = 425
    return config
