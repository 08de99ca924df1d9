import importlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest
from fakes import one_line
from skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401  # hooks

import shakegpt_jax
from shakegpt_jax.cli.command import run_command
from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import Corpus, split
from shakegpt_jax.data.text import tiny_shakespeare
from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.interop.huggingface_export import export_folder
from shakegpt_jax.training.run import train

os.environ["JAX_PLATFORMS"] = "cpu"  # inherited by the processes under test
if jax.__version_info__ < (0, 11):
    # The models under test are so small that compiling takes most of the time: this halves it.
    # Later versions of XLA do not have the flag.
    os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false"
os.environ.pop("PYTHONWARNINGS", None)
jax.config.update("jax_platforms", "cpu")
# Before any array is made: 8 virtual devices for the mesh, and no silent broadcasting.
jax.config.update("jax_num_cpu_devices", 8)
# Faster still; processes under test do without it.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory) -> Iterator[None]:
    """Share compiled programs between all tests and the processes under test."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    folder = folder / "compilation_cache"
    folder.mkdir(exist_ok=True)
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    os.environ.update(settings)
    yield
    for name in settings:
        del os.environ[name]


@pytest.fixture(scope="session", autouse=True)
def no_amx() -> Iterator[None]:
    """Compute in float32 on every CPU; test_linear.py tests what those with AMX compute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shakegpt_jax.model.linear.has_amx", lambda: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_curves() -> Iterator[None]:
    """End runs in this process without a picture, which would take longer than they do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shakegpt_jax.training.run.draw_run", lambda workdir, rows: "Curves: none")
        yield


@pytest.fixture(scope="session")
def processes() -> multiprocessing.context.BaseContext:
    """Starts processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shakegpt_jax.training.run"])
    return context


def small_config() -> Config:
    """Return a config that trains in a moment, not frozen."""
    config = Config()
    config.model.n_layer = 1
    config.model.n_head = 2
    config.model.n_embd = 16
    config.model.block_size = 8
    config.model.compute_dtype = "float32"  # in every process, on every CPU
    config.data.batch_size = 8
    config.optimizer.warmup_steps = 2
    config.train.num_steps = 12
    config.train.eval_every = 6
    config.train.steps_per_dispatch = 3
    config.train.sample_length = 0
    config.mesh.data = 1
    return config


@pytest.fixture
def config() -> Config:
    return small_config()


@pytest.fixture(scope="session")
def text() -> str:
    """The first lines of the real text."""
    return tiny_shakespeare()[:20_000]


@pytest.fixture
def corpus(text: str, config: Config) -> Corpus:
    tokenizer = CharTokenizer.from_text(text)
    return Corpus(tokenizer, *split(tokenizer.encode(text), config.model.block_size), "0" * 64)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory, text: str) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(text)
    return path


@pytest.fixture
def run_config(config: Config, text_file: Path) -> Config:
    """The small config with a text file, so that `train` needs only a moment."""
    config.data.path = str(text_file)
    return config


@pytest.fixture(scope="session")
def finished(tmp_path_factory, text_file: Path) -> Path:
    """A finished run of `run_config` with checkpoints 6 and 12. Do not change it."""
    config = small_config()
    config.data.path = str(text_file)
    workdir = tmp_path_factory.mktemp("finished") / "run"
    train(config.freeze(), workdir)
    return workdir


@pytest.fixture
def finished_copy(finished: Path, tmp_path: Path) -> Path:
    """A finished run of `run_config` to change."""
    return Path(shutil.copytree(finished, tmp_path / "finished"))


@pytest.fixture
def run_main(capsys) -> Iterator[Callable[[Callable], tuple[int, str, str]]]:
    """Runs the `main` of a command in this process; returns exit code and output."""

    def run(main: Callable[[], None]) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command(main)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def command(monkeypatch, run_main) -> Callable[..., tuple[int, str, str]]:
    """Runs a command by the name of its module and its arguments, as a shell would."""

    def run(module: str, *args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [module, *map(str, args)])
        name = "train_model" if module == "train" else module
        return run_main(importlib.import_module(f"shakegpt_jax.{name}").main)

    return run


@pytest.fixture(scope="session")
def exported(finished: Path, tmp_path_factory) -> Path:
    """The export of a finished run. Do not change it."""
    folder = tmp_path_factory.mktemp("exported") / "hf"
    export_folder(shakegpt_jax.load(finished), str(folder))
    return folder


@pytest.fixture
def hf(exported: Path, tmp_path: Path, monkeypatch) -> Path:
    """An export to change, in a working folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(exported, tmp_path / "hf"))


@pytest.fixture(scope="session")
def shuffled(text: str) -> str:
    """The vocabulary in an order of another tool."""
    return "".join(random.Random(0).sample(sorted(set(text)), len(set(text))))


@pytest.fixture
def refused(tmp_path: Path, command) -> Callable[..., str]:
    """Imports what must be refused, checks that nothing is written, and returns the line."""

    def run(*args: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        code, out, err = command("import_model", *args, "--workdir", tmp_path / "refused")
        assert (code, out) == (2, ""), err
        assert sorted(tmp_path.rglob("*")) == before
        assert len(err) < 400
        return one_line(err)

    return run
