"""12 layers, 8 heads, 768 dimensions, window 128, batch 128: 85 million parameters, for a GPU.

A step took 25.0 ms on an NVIDIA H200 with biases and a residual stream in float32, and should take
20 ms now (predicted). The loss is not measured yet. Like nanoGPT, it has no biases. Dropout and
weight decay follow trials at a twentieth of the size: 50,000 characters, 1.7 million parameters (4
layers of 184 dimensions, window 64), learning rate 2e-3, 2,000 steps at batch size 13, one seed
each. Best validation losses (blank: not tried):

    dropout  decay 0  decay 3  decay 10
    0.0               2.190
    0.1               2.207
    0.2      2.342    2.267    2.378
    0.4      2.389

Weight decay times learning rate is 0.6% per step in the middle column, as here. The dropout of 0.1
is a guess: this model has 85 parameters per training character, those had 33.
"""

from shakegpt_jax.config import Config


def get_config() -> Config:
    """Return the default shape, regularized against overfitting."""
    config = Config()
    # 16,384 characters per step: 33 epochs.
    config.train.num_steps = 2_000
    config.train.eval_every = 250  # the best checkpoint is kept if it overfits
    config.model.bias = False
    config.model.dropout = 0.1
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 6.0
    return config
