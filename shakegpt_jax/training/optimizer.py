"""Learning-rate schedule and optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from optax.contrib import MuonDimensionNumbers

from shakegpt_jax.config import OptimizerConfig
from shakegpt_jax.model.layers import is_block_matrix


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Return the learning rate by step: linear warmup, then cosine or linear decay.

    The warmup starts at `learning_rate / (warmup_steps + 1)`, since a rate of 0 would waste the
    first step, and takes at most half of the run. The decay reaches `final_learning_rate` at
    `num_steps`, one step after the last.
    """
    peak, final = config.learning_rate, config.final_learning_rate
    warmup_steps = min(config.warmup_steps, num_steps // 2)
    decay_steps = num_steps - warmup_steps
    warmup = optax.linear_schedule(peak / (warmup_steps + 1), peak, warmup_steps)
    if config.decay == "linear":
        decay = optax.linear_schedule(peak, final, decay_steps)
    else:
        decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=final / peak)
    return optax.join_schedules([warmup, decay], [warmup_steps])


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Return global-norm clipping followed by the optimizer with decoupled weight decay.

    "adam" decays matrices. "muon" uses Muon for the matrices of the blocks, which decay by
    `weight_decay`, and Adam with Nesterov momentum for the rest, which decays by
    `adam_weight_decay`. Muon's updates are scaled to the size of Adam's, so that both use the same
    learning rate. With `max_skipped_updates`, a step with non-finite gradients leaves parameters,
    moments and schedule unchanged, up to that many in a row.

    Sources: Pascanu et al. 2013 (clipping), Kingma and Ba 2015 (Adam), Dozat 2016 (its Nesterov
    momentum), Loshchilov and Hutter 2019 (decoupled weight decay), Jordan et al. 2024 (Muon), Liu
    et al. 2025 (its scale), Grishina et al. 2025 (its preconditioning).
    """
    schedule = make_schedule(config, num_steps)
    if config.name == "muon":
        optimizer = optax.contrib.muon(
            schedule,
            ns_steps=3,  # 3 with this preconditioning match 5 without and cost less
            preconditioning="schatten",
            eps=config.eps,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=config.adam_weight_decay,
            muon_weight_dimension_numbers=lambda params: jax.tree.map_with_path(
                lambda path, p: MuonDimensionNumbers() if is_block_matrix(path, p) else None, params
            ),
            consistent_rms=0.2,  # that of Adam's updates, typically
        )
    else:
        optimizer = optax.adamw(
            schedule,
            config.b1,
            config.b2,
            config.eps,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),
            nesterov=config.nesterov,
        )
    tx = optax.chain(_clip_by_global_norm(config.clip_norm), optimizer)
    if config.max_skipped_updates:
        return optax.apply_if_finite(tx, config.max_skipped_updates)
    return tx


def _clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Do what optax.clip_by_global_norm does, without its divisions.

    XLA on CPUs writes quotients to memory, but fuses products with what follows: a step takes 5%
    less.
    """

    def clip(updates: Any, params: Any) -> Any:
        scale = jnp.minimum(1, max_norm / optax.tree.norm(updates))
        return jax.tree.map(lambda g: g * scale, updates)

    return optax.stateless(clip)
