"""What only shows after a long time; minutes each, so run by hand: pytest -m slow."""

import gc
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shakegpt_jax import load
from shakegpt_jax.data.corpus import load_corpus
from shakegpt_jax.sharding import make_mesh
from shakegpt_jax.training.run import train
from shakegpt_jax.training.trainer import Trainer

pytestmark = pytest.mark.slow


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_memory_is_flat_over_5000_chunks(config, tmp_path, text):
    (tmp_path / "text.txt").write_text(text)
    config.train.num_steps, config.train.eval_every = 20_000, 20_000
    config.train.steps_per_dispatch = 2
    corpus = load_corpus(str(tmp_path / "text.txt"), 8)
    trainer = Trainer(config.freeze(), corpus, make_mesh(config))
    trainer.initialize()
    for _ in trainer.run(0, 2_000):
        pass
    gc.collect()
    before = resident_bytes()
    for _ in trainer.run(2_000, 12_000):
        pass
    gc.collect()
    grown = resident_bytes() - before
    print(f"{grown / 2**20:.1f} MiB in 5,000 chunks")
    assert grown < 10 * 2**20


def test_memory_is_flat_over_100000_characters(config, tmp_path, text):
    (tmp_path / "text.txt").write_text(text)
    config.data.path = str(tmp_path / "text.txt")
    train(config.freeze(), tmp_path / "run")
    chunks = load(tmp_path / "run").stream(["First"], 110_000)
    written = 0
    while written < 10_000:
        written += len(next(chunks)[0])
    gc.collect()
    before = resident_bytes()
    for (piece,) in chunks:
        written += len(piece)
    gc.collect()
    grown = resident_bytes() - before
    print(f"{grown / 2**20:.1f} MiB in 100,000 characters")
    assert written == 110_000
    assert grown < 10 * 2**20


def test_a_million_characters_into_a_pipe_that_closes(config, tmp_path, text):
    (tmp_path / "text.txt").write_text(text)
    config.data.path = str(tmp_path / "text.txt")
    train(config.freeze(), tmp_path / "run")
    args = ["--max_new_tokens", "1000000", "--prompt", "First", "--workdir", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "shakegpt_jax.generate", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout and process.stderr
    assert len(process.stdout.read(100_000)) == 100_000
    process.stdout.close()
    checkpoint = re.escape(str(tmp_path / "run" / "checkpoints"))
    assert re.fullmatch(checkpoint + r"/\d+\n", process.stderr.read().decode())
    assert process.wait(timeout=60) == 0
    process.stderr.close()
