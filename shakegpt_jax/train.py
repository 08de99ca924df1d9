"""The training loop: when to evaluate, save and stop, and what is told of it."""

import contextlib
import dataclasses
import math
import shlex
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from shakegpt_jax import hardware, sharding
from shakegpt_jax.checkpoint import Checkpoints, CheckpointWriter
from shakegpt_jax.config import Config
from shakegpt_jax.data import Corpus, load_corpus
from shakegpt_jax.errors import DamagedError, DivergedError, StoppedBySignalError, UserError
from shakegpt_jax.guard import StopSignals, only_one
from shakegpt_jax.metrics import MetricsFile, Row
from shakegpt_jax.model import compute_dtype, train_flops_per_character
from shakegpt_jax.progress import Progress, duration
from shakegpt_jax.run_info import RunInfo
from shakegpt_jax.trainer import Trainer, run_info

SAMPLE_PROMPT = "O God, O God!"

_SLOW_SECONDS = 10.0
_LONGEST_DISPATCH_SECONDS = 3.0
_CPU_FLOPS = 1e11  # per second, a laptop's

# What may change when a run is continued; the text itself is known by its digest.
_RESUMABLE_FIELDS = {
    "data.path",
    "train.eval_every",
    "train.steps_per_dispatch",
    "train.keep_checkpoints",
    "train.sample_length",
    "mesh.data",
    "mesh.fsdp",
}


def train(config: Config, workdir: str | Path) -> None:
    """Train from the start or the newest checkpoint to the last step, reporting on the way.

    Args:
        config: the run, frozen.
        workdir: its folder, created where it is missing.

    Raises:
        UserError: if the config or the text cannot serve, or the folder holds another run.
        DivergedError: if a loss or a gradient is not finite.
        SaveError: if checkpoints cannot be saved.
        StoppedBySignalError: after a signal, everything being saved.
    """
    started = time.perf_counter()
    corpus = load_corpus(config.data.path, config.model.block_size)
    mesh = sharding.make_mesh(config)
    num_steps, every = config.train.num_steps, config.train.eval_every
    prompt = _sample_prompt(corpus)
    with only_one(workdir), Progress(num_steps) as progress, StopSignals() as stop:
        config = _suit_cpu(config, corpus, progress)
        _refuse_another_run(Checkpoints(workdir), run_info(config, corpus))
        with CheckpointWriter(workdir, config.train.keep_checkpoints, progress.note) as checkpoints:
            trainer = Trainer(config, corpus, mesh)
            if step := checkpoints.latest_step:
                trainer.restore(checkpoints, step)
                done = "is finished, at" if step == num_steps else "goes on from"
                progress.note(f"{workdir} {done} step {step} of {num_steps}")
            else:
                trainer.initialize()
            progress.begin(step, _peak_characters_per_second(trainer))
            log = MetricsFile(workdir, step, started)
            saved, evaluation = step, None
            while step < num_steps and not stop.received:
                until = min(num_steps, (step // every + 1) * every)
                evaluation = None
                for row in trainer.run(step, until, lambda: stop.received):
                    first, step = step + 1, row["step"]
                    _check_finite(row, ("train_loss", "gradient_norm"), first, checkpoints)
                    if step == until:
                        evaluation = dataclasses.asdict(trainer.evaluate())
                        row |= {f"val_{name}": value for name, value in evaluation.items()}
                        _check_finite(row, ("val_loss", "val_perplexity"), first, checkpoints)
                    log.append(row)
                    progress.show(row)
                    with contextlib.suppress(OSError):  # a full disk: tried again, and told below
                        log.flush()
                if step > saved:
                    trainer.save(checkpoints, step, evaluation)
                    saved = step
                if config.train.sample_length and not stop.received:
                    progress.verse(trainer.sample(prompt, config.train.sample_length))
            checkpoints.wait()
            while checkpoints.latest_step < step:  # the last is tried until it is the third
                trainer.save(checkpoints, step, evaluation)
                checkpoints.wait()
            log.flush()
            if step < num_steps:
                assert stop.received
                raise StoppedBySignalError(_how_to_go_on(step, workdir), stop.received)
            best = checkpoints.find("best")
            metrics, path = checkpoints.metrics(best), checkpoints.path(best)
            progress.summary(best, metrics, path, log.time_to.get(best), log.last)
    command = f"python -m shakegpt_jax.generate --workdir {shlex.quote(str(workdir))}"
    progress.note(f"To read more: {command} --prompt {shlex.quote(prompt)}")


def _refuse_another_run(checkpoints: Checkpoints, info: RunInfo) -> None:
    for step in reversed(checkpoints.steps):
        with contextlib.suppress(DamagedError):  # another one may tell
            if differing := _differing(info, checkpoints.run_info(step)):
                raise UserError(
                    f"{checkpoints.workdir} holds another run; what differs: "
                    f"{', '.join(differing)}; give another --workdir, or the config that run was "
                    "started with"
                )
            return


def _how_to_go_on(step: int, workdir: str | Path) -> str:
    if not step:
        return f"stopped before the first steps; the same command starts again in {workdir}"
    return f"stopped and saved at step {step}; the same command goes on from there in {workdir}"


def _check_finite(
    row: Row, names: tuple[str, ...], first: int, checkpoints: CheckpointWriter
) -> None:
    bad = [name for name in names if row[name] is not None and not math.isfinite(row[name])]
    if bad:
        checkpoints.wait()
        raise DivergedError(
            f"{' and '.join(f'{name} is {row[name]}' for name in bad)} in steps {first} to "
            f"{row['step']}; {checkpoints.last_good()}; try a lower "
            "config.optimizer.learning_rate, in another --workdir"
        )


def _sample_prompt(corpus: Corpus) -> str:
    """Return a prompt that the text's vocabulary can spell."""
    if set(SAMPLE_PROMPT) <= set(corpus.tokenizer.vocabulary):
        return SAMPLE_PROMPT
    text = corpus.tokenizer.decode(corpus.val_ids[:1_000])
    return (text.split() or [text[:1]])[0]


def _differing(ours: RunInfo, theirs: RunInfo) -> list[str]:
    """Name what makes two runs different ones."""
    saved = theirs.config.to_dict()
    fields = [
        f"{section}.{name} (saved {saved[section][name]!r}, now {value!r})"
        for section, values in ours.config.to_dict().items()
        for name, value in values.items()
        if f"{section}.{name}" not in _RESUMABLE_FIELDS and saved[section][name] != value
    ]
    other_text = ours.text_sha256 != theirs.text_sha256
    return fields + [f"the text (now {ours.config.data.path or 'Tiny Shakespeare'})"] * other_text


def _peak_characters_per_second(trainer: Trainer) -> float | None:
    model = trainer.config.model
    peak = hardware.peak_flops(trainer.mesh.devices.flat[0])
    if peak is None or compute_dtype(model) != jnp.bfloat16:
        return None
    return peak * trainer.mesh.size / train_flops_per_character(model, trainer.model.vocab_size)


def _suit_cpu(config: Config, corpus: Corpus, progress: Progress) -> Config:
    """On a CPU, tell beforehand what a large config will take, and dispatch few steps at once."""
    if jax.default_backend() != "cpu":
        return config
    flops = train_flops_per_character(config.model, corpus.tokenizer.vocab_size)
    step_flops = flops * config.data.batch_size * config.model.block_size
    evaluation_flops = flops / 3 * len(corpus.val_ids)
    if step_flops + evaluation_flops > _SLOW_SECONDS * _CPU_FLOPS:
        speed = hardware.measure_matmul_flops()
        step, evaluation = step_flops / speed, evaluation_flops / speed
        n_evaluation = math.ceil(config.train.num_steps / config.train.eval_every)
        whole = step * config.train.num_steps + evaluation * n_evaluation
        progress.note(
            f"on this CPU one step takes {duration(step)} or more, one evaluation "
            f"{duration(evaluation)}, the whole run {duration(whole)}; this config is for a GPU, "
            "and configs/cpu.py for a CPU"
        )
    # A signal is heeded between dispatches. Not from a measurement: it would differ from start
    # to start, and with it the rows of the metrics and the last bits.
    most = max(1, int(_LONGEST_DISPATCH_SECONDS * _CPU_FLOPS / step_flops))
    most = min(config.train.steps_per_dispatch, most)
    return config.replace({"train.steps_per_dispatch": most})
