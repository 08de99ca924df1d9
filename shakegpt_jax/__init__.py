"""A character-level GPT that learns Shakespeare, in JAX, Flax, Optax and Orbax.

>>> import shakegpt_jax
>>> lm = shakegpt_jax.load("runs/cpu")
>>> lm.generate("O God, O God!", max_new_tokens=200, temperature=0.8, seed=0)
"""

from shakegpt_jax.errors import UserError
from shakegpt_jax.evaluate import Evaluation
from shakegpt_jax.language_model import LanguageModel, load

__all__ = ["Evaluation", "LanguageModel", "UserError", "load"]
