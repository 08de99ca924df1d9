"""Checks that several processes train the same run, in the same folder."""

import importlib.metadata
import secrets
from pathlib import Path
from typing import Any

import jax

from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import Corpus
from shakegpt_jax.errors import UserError
from shakegpt_jax.parallel.processes import (
    check_equal,
    from_primary,
    highest,
    is_primary,
    primary_first,
)
from shakegpt_jax.training.init_from import PretrainedCheckpoint


def check_same_run(
    config: Config, corpus: Corpus, workdir: str | Path, source: PretrainedCheckpoint | None
) -> None:
    """Check that all processes have the same config, text, folder and packages. All must call it.

    Args:
        config: frozen config; only its `data.path` may differ.
        corpus: the text.
        workdir: run folder.
        source: checkpoint that the run starts from; None: it starts from scratch or resumes.

    Raises:
        UserError: in all processes, naming each difference from process 0.
    """
    values: dict[str, Any] = {
        f"config.{path}": value for path, _, value in config.fields() if path != "data.path"
    }
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    values |= {name: importlib.metadata.version(name) for name in packages}
    values |= {"text": corpus.sha256, "vocabulary": corpus.tokenizer.vocabulary}
    values |= {"the checkpoint to start from": source and str(source.path)}
    check_equal("start", values | {"--workdir": str(workdir)})


def check_shared(workdir: str | Path) -> None:
    """Check that all processes see the run folder of process 0. All must call it.

    Raises:
        UserError: in all processes, if one of them sees another folder.
    """
    if jax.process_count() == 1:
        return
    marker = Path(workdir) / from_primary("marker", f".shared-{secrets.token_hex(8)}")
    primary_first(marker.touch)
    missing = highest(not marker.exists())
    if is_primary():
        marker.unlink()
    if missing:
        raise UserError(f"{workdir} is not the same folder for all processes; share --workdir")
