"""10.8 million parameters, window 256, Muon and heavy decay: aims at the lowest loss, on one GPU.

Its loss is not measured yet. The peak learning rate and the decay per step are close to those of
github.com/JiHa-Kim/tinyshakespeare-gpt-optimizers, which reports 1.39 for a model of this size on
random batches, with another schedule, architecture and optimizer.
"""

from shakegpt_jax.config import Config


def get_config() -> Config:
    """Return a config of nanoGPT's shape for this text, for 33 epochs."""
    config = Config()
    config.model.n_layer = 6
    config.model.n_head = 6
    config.model.n_embd = 384
    config.model.block_size = 256
    config.model.bias = False
    config.model.dropout = 0.1
    config.data.batch_size = 64
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 9e-3  # the RMS of updates is at most about 0.2 times this
    config.optimizer.weight_decay = 1.3  # 1.2% per step at the peak
    config.optimizer.adam_weight_decay = 0.3  # from trials at a twentieth of the size: docs/log.md
    config.train.num_steps = 2_000
    config.train.eval_every = 100
    return config
