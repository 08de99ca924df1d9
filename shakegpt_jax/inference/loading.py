"""Loading a trained model from a run folder."""

from pathlib import Path
from typing import Literal

from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.run_folder import find_run
from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.inference.sampling import as_integer, require
from shakegpt_jax.model.gpt import GPT, abstract_params
from shakegpt_jax.sharding import on_one_device


def load(
    workdir: str | Path = "", *, step: int | Literal["best", "latest"] = "best"
) -> LanguageModel:
    """Load a trained model.

    Args:
        workdir: a run folder; empty: the newest under "runs".
        step: the checkpoint; "best" has the lowest validation loss.

    Raises:
        UserError: if there is no such run or checkpoint, or this version cannot read it.
        CorruptCheckpointError: if a file of the checkpoint is missing or has changed.
    """
    require(isinstance(workdir, str | Path), "workdir", workdir, "a folder name")
    if isinstance(step, str):
        right = "'best', 'latest' or a whole number"
        require(step in ("best", "latest"), "step", step, right)
    else:
        step = as_integer("step", step, 0)
    checkpoints = CheckpointReader(find_run(str(workdir)))

    def restore() -> LanguageModel:
        saved = checkpoints.read(step)
        config, tokenizer = saved.metadata.config, CharTokenizer(saved.metadata.vocabulary)
        model = GPT(config.model, tokenizer.vocab_size)
        abstract = on_one_device(abstract_params(config.model, tokenizer.vocab_size))
        params = checkpoints.restore(saved.step, {"params": abstract})["params"]
        known = saved.metadata.text_sha256, saved.path, saved.step, saved.metrics
        return LanguageModel(model, params, tokenizer, config, *known)

    return checkpoints.read_stable(restore)
