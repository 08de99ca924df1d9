"""12 layers, 8 heads, 768 dimensions, window 128, batch 128: 85 million parameters, for a GPU.

Its loss is not measured yet. Dropout and weight decay follow trials on a twentieth of the text, in
docs/log.md.
"""

from shakegpt_jax.config import Config


def get_config() -> Config:
    """Return the default shape, regularized against overfitting."""
    config = Config()
    # 16,384 characters per step: 33 epochs.
    config.train.num_steps = 2_000
    config.train.eval_every = 250  # the best checkpoint is kept if it overfits
    config.model.bias = False  # like nanoGPT
    config.model.dropout = 0.1  # a guess: 85 parameters per training character; the trials had 33
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 6.0  # times the learning rate: 0.6% per step
    return config
