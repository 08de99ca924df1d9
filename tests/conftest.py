import multiprocessing
import os
from collections.abc import Iterator

import jax
import pytest

from shakegpt_jax.config import Config
from shakegpt_jax.data import CharTokenizer, Corpus, split, tiny_shakespeare

os.environ["JAX_PLATFORMS"] = "cpu"  # inherited by the processes under test
jax.config.update("jax_platforms", "cpu")
# Before any array is made: 8 virtual devices for the mesh, and no silent broadcasting.
jax.config.update("jax_num_cpu_devices", 8)
# The tests' models are so small that compiling is most of the time; the commands under test
# compile as a user's do.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory) -> Iterator[None]:
    """What one test has compiled, no other compiles again, nor do the commands under test."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # all workers'
    folder = folder / "compilation_cache"
    folder.mkdir(exist_ok=True)
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    os.environ.update(settings)
    yield
    for name in settings:
        del os.environ[name]


@pytest.fixture(scope="session")
def context() -> multiprocessing.context.BaseContext:
    """Starts processes that have imported everything, so that a life takes a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shakegpt_jax.train"])
    return context


@pytest.fixture
def config() -> Config:
    """A model small enough to train in a moment; not frozen, for tests to change."""
    config = Config()
    config.model.n_layer = 1
    config.model.n_head = 2
    config.model.n_embd = 16
    config.model.block_size = 8
    config.data.batch_size = 8
    config.optimizer.warmup_steps = 2
    config.train.num_steps = 12
    config.train.eval_every = 6
    config.train.steps_per_dispatch = 3
    config.train.sample_length = 0
    config.mesh.data = 1
    return config


@pytest.fixture(scope="session")
def text() -> str:
    """The first lines of the real text."""
    return tiny_shakespeare()[:20_000]


@pytest.fixture
def corpus(text: str, config: Config) -> Corpus:
    tokenizer = CharTokenizer.from_text(text)
    return Corpus(tokenizer, *split(tokenizer.encode(text), config.model.block_size), "0" * 64)
