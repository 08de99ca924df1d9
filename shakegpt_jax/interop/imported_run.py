"""A model of another tool."""

import dataclasses
from typing import Any

from shakegpt_jax.checkpoints.reader import Metrics
from shakegpt_jax.checkpoints.run_folder import RunMetadata
from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class ImportedModel:
    """Contents of the checkpoint of an imported run."""

    metadata: RunMetadata
    params: Any  # pytree of float32 NumPy arrays
    step: int  # 1 if it is not known
    metrics: Metrics | None  # validation metrics, if this package measured them
    origin: str  # a phrase that says where it comes from


def is_step(value: Any) -> bool:
    """Return whether a value can be the step of a checkpoint."""
    return type(value) is int and 1 <= value < 2**31


def foreign_metadata(model: dict[str, Any], vocabulary: str, step: int, name: str) -> RunMetadata:
    """Return the metadata of a model that another tool trained; errors name the file `name`."""
    try:
        changes = {f"model.{field}": value for field, value in model.items()}
        config = Config().replace(changes | {"train.num_steps": step})
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    return RunMetadata(config, "".join(sorted(vocabulary)), text_sha256="")
