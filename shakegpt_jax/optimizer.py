"""The learning-rate schedule and the optax chain."""

import jax
import optax

from shakegpt_jax.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Return the learning rate by step: linear warmup, then half a cosine.

    Step 0 takes `learning_rate / (warmup_steps + 1)`, so that no step is wasted on a rate of 0;
    step `warmup_steps` takes `learning_rate`, and the rate would reach `final_learning_rate` at
    `num_steps`. A warmup longer than half the run is cut there.
    """
    warmup_steps = min(config.warmup_steps, num_steps // 2)
    return optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / (warmup_steps + 1),
        peak_value=config.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=num_steps,
        end_value=config.final_learning_rate,
    )


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Return clipping by global norm, then Adam, then decoupled weight decay on matrices.

    Sources: Pascanu et al. 2013 (clipping), Kingma and Ba 2015 (Adam), Loshchilov and Hutter
    2019 (decoupled decay).

    With `max_skipped_updates`, gradients that are not finite change nothing, the schedule and
    Adam's means included, until there are more of them in a row.
    """
    decay = [optax.add_decayed_weights(config.weight_decay, _matrices)]
    tx = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        *(decay if config.weight_decay else []),
        optax.scale_by_learning_rate(make_schedule(config, num_steps)),
    )
    most = config.max_skipped_updates
    return optax.apply_if_finite(tx, most) if most else tx


def _matrices(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda p: p.ndim >= 2, params)
