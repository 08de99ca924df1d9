"""A character-level GPT that learns Shakespeare, in JAX, Flax, Optax and Orbax.

>>> import shakegpt_jax
>>> lm = shakegpt_jax.load("runs/cpu")
>>> lm.generate("O God, O God!", max_new_tokens=200, temperature=0.8, seed=0)
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from shakegpt_jax.errors import CorruptCheckpointError, UserError
    from shakegpt_jax.inference.language_model import LanguageModel, load
    from shakegpt_jax.reporting.metrics import Evaluation

__all__ = ["CorruptCheckpointError", "Evaluation", "LanguageModel", "UserError", "load"]

_MODULES = {
    "CorruptCheckpointError": "errors",
    "Evaluation": "reporting.metrics",
    "LanguageModel": "inference.language_model",
    "UserError": "errors",
    "load": "inference.language_model",
}


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that a command imports only what it needs."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return __all__
