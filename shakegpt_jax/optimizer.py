"""The learning-rate schedule and the optax chain."""

import jax
import optax
import optax.contrib
from optax.contrib import MuonDimensionNumbers

from shakegpt_jax.config import OptimizerConfig

_ADAM_RMS = 0.2  # root mean square of Adam's updates, about


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
    """Return clipping by global norm, then the optimizer, with decoupled weight decay.

    "adam" is Adam throughout, and matrices decay. "muon" is Muon for the blocks' matrices, and
    Adam (with Nesterov's momentum, as optax has it) for the rest. Muon's updates are scaled to
    the size of Adam's, so that one learning rate serves both. The blocks' matrices decay by
    `weight_decay`, the rest, vectors included, by `adam_weight_decay`.

    Sources: Pascanu et al. 2013 (clipping), Kingma and Ba 2015 (Adam), Loshchilov and Hutter
    2019 (decoupled decay), Jordan et al. 2024 (Muon), Liu et al. 2025 (its scale),
    Grishina et al. 2025 (its preconditioning).

    With `max_skipped_updates`, gradients that are not finite change nothing, the schedule and
    the means included, until there are more of them in a row.
    """
    schedule = make_schedule(config, num_steps)
    if config.name == "muon":
        optimizer = optax.contrib.muon(
            schedule,
            ns_steps=3,  # preconditioned so, 3 learn as much as 5 without, and cost less
            preconditioning="schatten",
            eps=config.eps,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=config.adam_weight_decay,
            muon_weight_dimension_numbers=_hidden_matrices,
            consistent_rms=_ADAM_RMS,
        )
    else:
        optimizer = optax.adamw(
            schedule,
            config.b1,
            config.b2,
            config.eps,
            weight_decay=config.weight_decay,
            mask=_matrices,
        )
    tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    most = config.max_skipped_updates
    return optax.apply_if_finite(tx, most) if most else tx


def _matrices(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda p: p.ndim >= 2, params)


def _hidden_matrices(params: optax.Params) -> optax.Params:
    """Mark the kernels of the blocks; embeddings and head are matrices too, but not for Muon."""

    def mark(path: jax.tree_util.KeyPath, p: jax.Array) -> MuonDimensionNumbers | None:
        hidden = jax.tree_util.keystr(path[:1], simple=True).startswith("block")
        return MuonDimensionNumbers() if hidden and p.ndim == 2 else None

    return jax.tree.map_with_path(mark, params)
