"""12 layers, 8 heads, 768 dimensions, window 128, batch 128: 85 million parameters, for a GPU.

Not measured yet. On a twentieth of the text (50,000 characters), with 1.7 million parameters (4
layers of 184 dimensions, window 64), a rate of 2e-3 and 2,000 steps of 13, one seed each, the best
loss on the whole validation split was (blank: not tried)

    dropout  decay 0  decay 3  decay 10
    0.0               2.190
    0.1               2.207
    0.2      2.342    2.267    2.378
    0.4      2.389

Decay times rate is 0.6% a step in the middle column, as here. That a little dropout stays is a
guess: this model has 85 parameters for a character of its text, those had 33.
"""

from shakegpt_jax.config import Config


def get_config() -> Config:
    """Return the default shape, with what keeps it from learning the text by heart."""
    config = Config()
    # Each step reads 16,384 of the million characters to learn: this is 33 times through them.
    config.train.num_steps = 2_000
    config.train.eval_every = 250  # should it overfit, the best checkpoint is kept
    config.model.dropout = 0.1
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 6.0
    return config
