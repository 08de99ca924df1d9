"""Experiment trackers, which get the metrics of a run; extras of the same names install them."""

import functools
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from shakegpt_jax.cli.command import import_extra
from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError
from shakegpt_jax.reporting.metrics import Callback, MetricsFile, scalars
from shakegpt_jax.reporting.tensorboard import EventFile

_PROJECT = "shakegpt_jax"


class _Run(NamedTuple):
    id: str
    log: Callable[..., object]  # log(values, step=step)
    last_step: int | None  # that it holds; None: unknown


def _wandb(name: str, run_id: str | None, config: Config, stack: ExitStack) -> _Run:
    # Seconds from one flush to the next. By default 15: what a killed process would lose.
    os.environ.setdefault("WANDB__TRANSACTION_LOG_FLUSH_INTERVAL", "0.1")
    wandb = import_extra("wandb", extra="wandb")
    options = {"config": config.to_dict(), "allow_val_change": True}  # of what may change on resume
    project = os.environ.get("WANDB_PROJECT", _PROJECT)
    run = wandb.init(project=project, name=name, id=run_id, resume="allow", **options)
    stack.enter_context(run)
    log = functools.partial(run.log, commit=True)  # else a row waits for the next one
    return _Run(run.id, log, run.step - 1 if run.resumed else None)  # offline: not resumed


def _trackio(name: str, run_id: str | None, config: Config, stack: ExitStack) -> _Run:
    trackio = import_extra("trackio", extra="trackio")
    name = run_id or f"{name}-{os.urandom(3).hex()}"
    run = trackio.init(_PROJECT, name, config=config.to_dict(), resume="allow")
    stack.callback(trackio.finish)
    return _Run(name, run.log, trackio.SQLiteStorage.get_max_step_for_run(_PROJECT, name) or 0)


def _mlflow(name: str, run_id: str | None, config: Config, stack: ExitStack) -> _Run:
    mlflow = import_extra("mlflow", extra="mlflow")
    run = stack.enter_context(mlflow.start_run(run_id, run_name=name))
    if not run_id:  # parameters cannot change
        mlflow.log_params({path: value for path, _, value in config.fields()})
    known = mlflow.MlflowClient().get_metric_history(run.info.run_id, "learning_rate")
    return _Run(run.info.run_id, mlflow.log_metrics, max((each.step for each in known), default=0))


_OPEN = {"wandb": _wandb, "trackio": _trackio, "mlflow": _mlflow}


def check_tracker(name: str) -> None:
    """Raise a `UserError` if the package of a tracker is missing."""
    if name != "none":
        import_extra(name, extra=name)


def open_tracker(config: Config, workdir: Path, metrics: MetricsFile, stack: ExitStack) -> Callback:
    """Return a callback that logs to the tracker of a run, which `stack` closes.

    A file in the run folder holds the id of the tracker's run, which a resumed run continues. The
    tracker keeps the steps that it has and is sent the rows that it lacks.
    """
    name = config.train.tracker
    if name == "tensorboard":
        return EventFile(workdir, metrics.rows).add
    path = workdir / f"{name}.id"
    known = path.read_text() if metrics.rows and path.exists() else None
    try:
        run = _OPEN[name](workdir.resolve().name, known, config, stack)
    except Exception as error:  # each has its own: no login, no such run, no server
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        advice = f"; remove {path} to start another run there" if known else ""
        raise UserError(f"{name} cannot be used: {reason}{advice}") from error
    path.write_text(run.id)
    done = (metrics.repeated_until if known else 0) if run.last_step is None else run.last_step

    def callback(row: dict[str, Any]) -> None:
        if row["step"] > done:
            run.log(scalars(row), step=row["step"])

    for row in metrics.rows:
        callback(row.to_json())
    return callback
