"""Models whose probabilities are known, and a disk that is nearly full."""

import dataclasses
import resource
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shakegpt_jax.config import ModelConfig, _field, _integer
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.model.gpt import GPT, KVCache


@dataclasses.dataclass(frozen=True)
class PositionModel:
    """Predicts any of `vocab_size` characters alike, but for `favourite`, likelier by position.

    At position t of a window its logit is t + 1, the others' are 0.
    """

    block_size: int
    vocab_size: int
    favourite: int = 0

    @property
    def config(self) -> SimpleNamespace:
        return SimpleNamespace(block_size=self.block_size)

    def apply(self, variables: dict, idx_BxT: jax.Array) -> jax.Array:
        n_batch, n_time = idx_BxT.shape
        boost_TxV = (1.0 + jnp.arange(n_time))[:, None] * jax.nn.one_hot(
            self.favourite, self.vocab_size
        )[None]
        return jnp.broadcast_to(boost_TxV[None], (n_batch, n_time, self.vocab_size))

    def loss(self, position: int, target: int) -> float:
        logits = np.zeros(self.vocab_size)
        logits[self.favourite] = position + 1
        return float(np.log(np.exp(logits).sum()) - logits[target])


@dataclasses.dataclass(frozen=True)
class FixedModel:
    """Writes every character from the same probabilities, whatever came before."""

    probabilities: tuple[float, ...]
    block_size: int = 64

    @property
    def vocab_size(self) -> int:
        return len(self.probabilities)

    @property
    def config(self) -> SimpleNamespace:
        return SimpleNamespace(
            block_size=self.block_size, n_layer=1, n_head=1, n_embd=1, compute_dtype="float32"
        )

    def apply(self, variables: dict, x: jax.Array, *cache: KVCache, method: str) -> Any:
        return self.head(x) if method == "head" else self.extend(x, *cache)

    def extend(self, idx_BxT: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        """Return the characters themselves."""
        return idx_BxT, cache._replace(lengths_B=cache.lengths_B + idx_BxT.shape[1])

    def head(self, x: jax.Array) -> jax.Array:
        logits_V = jnp.log(jnp.array(self.probabilities))
        return jnp.broadcast_to(logits_V, (*x.shape, self.vocab_size))


@dataclasses.dataclass(frozen=True)
class CountingModel(FixedModel):
    """Notes every time that JAX traces it."""

    traces: list[str] = dataclasses.field(default_factory=list, compare=False)

    def apply(self, variables: dict, x: jax.Array, *cache: KVCache, method: str) -> Any:
        self.traces.append(method)
        return super().apply(variables, x, *cache, method=method)


@dataclasses.dataclass(unsafe_hash=True)
class ExpertsConfig(ModelConfig):
    """A config with a field that nobody knows yet."""

    n_expert: int = _field(4, "experts", _integer(1))


def with_new_field(lm: LanguageModel) -> LanguageModel:
    config = lm.config.copy()
    config.model = ExpertsConfig(**dataclasses.asdict(config.model))
    model = GPT(config.model, lm.model.vocab_size)
    return dataclasses.replace(lm, config=config, model=model)


class SmallFiles:
    """Let no file grow beyond a few bytes, as on a disk that is nearly full."""

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, self.before[1]))

    def __exit__(self, *exception: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


class Crash(Exception):
    """Stands for whatever ends a process."""


def crash_at_9(row: dict[str, Any]) -> None:
    """End a run after the row of step 9; a callback."""
    if row["step"] == 9:
        raise Crash


def one_line(text: str) -> str:
    """Return the one line that a command ended with."""
    assert text.startswith("error: ") and text.count("\n") == 1 and text.endswith("\n"), text
    return text
