"""A character-level GPT that learns Shakespeare, in JAX, Flax, Optax and Orbax.

>>> import shakegpt_jax
>>> lm = shakegpt_jax.load("runs/cpu")
>>> lm.generate("O God, O God!", max_new_tokens=200, temperature=0.8, seed=0)
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from shakegpt_jax.config import Config, ModelConfig
    from shakegpt_jax.configs import load_config
    from shakegpt_jax.data.tokenizer import CharTokenizer
    from shakegpt_jax.errors import (
        CorruptCheckpointError,
        DivergedError,
        SaveError,
        StoppedBySignalError,
        UserError,
    )
    from shakegpt_jax.inference.language_model import LanguageModel
    from shakegpt_jax.inference.loading import load
    from shakegpt_jax.model.gpt import GPT
    from shakegpt_jax.reporting.metrics import Evaluation
    from shakegpt_jax.training.api import TrainingResult, train

__all__ = [
    "GPT",
    "CharTokenizer",
    "Config",
    "CorruptCheckpointError",
    "DivergedError",
    "Evaluation",
    "LanguageModel",
    "ModelConfig",
    "SaveError",
    "StoppedBySignalError",
    "TrainingResult",
    "UserError",
    "load",
    "load_config",
    "train",
]

_MODULES = {
    "CharTokenizer": "data.tokenizer",
    "Config": "config",
    "CorruptCheckpointError": "errors",
    "DivergedError": "errors",
    "Evaluation": "reporting.metrics",
    "GPT": "model.gpt",
    "LanguageModel": "inference.language_model",
    "ModelConfig": "config",
    "SaveError": "errors",
    "StoppedBySignalError": "errors",
    "TrainingResult": "training.api",
    "UserError": "errors",
    "load": "inference.loading",
    "load_config": "configs",
    "train": "training.api",
}


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that a command imports only what it needs."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return __all__
