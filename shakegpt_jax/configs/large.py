"""24 layers, 16 heads, 2,048 dimensions, window 1,024: 1.2 billion parameters, for 64 GPUs.

The shape of GPT-3 XL (Brown et al. 2020), which has 1.3 billion with its vocabulary of 50,257; its
learning rate, weight decay and batch, a million characters. Planned for 8 nodes of 8 H100s, never
run: docs/scale.md. Set `data.path` to a large text: it would learn Tiny Shakespeare by heart.
"""

from shakegpt_jax.config import Config


def get_config() -> Config:
    """Return the shape and the mesh."""
    config = Config()
    config.model.n_layer = 24
    config.model.n_head = 16
    config.model.n_embd = 2_048
    config.model.block_size = 1_024
    config.model.bias = False
    config.model.remat = True  # else 24 blocks store 0.7 GB of attention weights each
    config.data.batch_size = 1_024
    config.mesh.fsdp = 8  # within a node; the nodes share the batch
    config.optimizer.learning_rate = 2e-4
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.train.num_steps = 25_000  # 20 characters per parameter
    return config
