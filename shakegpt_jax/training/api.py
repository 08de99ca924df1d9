"""Training from Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shakegpt_jax.config import Config
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.inference.loading import load
from shakegpt_jax.inference.sampling import require
from shakegpt_jax.reporting.curves import notebook_curves
from shakegpt_jax.reporting.metrics import Callback, read_metrics
from shakegpt_jax.training import run


class TrainingResult(NamedTuple):
    """The result of `shakegpt_jax.train`."""

    lm: LanguageModel  # of the best checkpoint
    rows: list[dict[str, Any]]  # of metrics.jsonl


def train(
    config: Config, workdir: str | Path, callbacks: Sequence[Callback] = ()
) -> TrainingResult:
    """Train a model in a run folder, or resume its run, as `shakegpt train` does.

    Args:
        config: frozen or not, such as `load_config("cpu")`.
        workdir: the run folder; it is created if it does not exist.
        callbacks: functions that are called with each new row of metrics.jsonl, a dict that
            docs/runs.md describes; with several processes, in the first one. An exception in one
            ends the run, which can resume from its latest checkpoint.

    Returns:
        The model of the best checkpoint, as `load(workdir)`, and all rows of metrics.jsonl.

    Raises:
        UserError: if the config or the text is invalid, the folder holds another run,
            `config.train.init_from` or the tracker cannot be used, or the processes differ.
        DivergedError: if a loss or gradient is not finite.
        SaveError: if checkpoints cannot be saved.
        StoppedBySignalError: after SIGINT (in a notebook: "interrupt") or SIGTERM, once the state
            is saved.
    """
    require(isinstance(config, Config), "config", config, "a Config, as of load_config('cpu')")
    require(isinstance(workdir, str | Path), "workdir", workdir, "a folder name")
    are_functions = isinstance(callbacks, list | tuple) and all(map(callable, callbacks))
    require(are_functions, "callbacks", callbacks, "a list of functions")
    curves = notebook_curves(Path(workdir))
    run.train(config.replace({}), workdir, callbacks=[*callbacks, *curves])
    return TrainingResult(load(workdir), [row.to_json() for row in read_metrics(workdir)])
