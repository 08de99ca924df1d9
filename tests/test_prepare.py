"""Texts beyond memory: preparing them, and training from the ids on disk."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from fakes import one_line

from shakegpt_jax import load
from shakegpt_jax.data import prepared
from shakegpt_jax.data.corpus import load_corpus, spread_pieces
from shakegpt_jax.data.prepared import load_prepared, prepare_text
from shakegpt_jax.data.text import read_text
from shakegpt_jax.data.windows import gather_on_host, sample_starts, shuffled_starts
from shakegpt_jax.errors import UserError
from shakegpt_jax.inference.evaluation import select
from shakegpt_jax.reporting.metrics import read_metrics
from shakegpt_jax.sharding import make_mesh
from shakegpt_jax.training.run import train
from shakegpt_jax.training.step import random_key
from shakegpt_jax.training.trainer import HostWindows, Trainer


@pytest.fixture
def folder(text_file, tmp_path) -> str:
    """The text of `text_file`, prepared."""
    prepare_text([str(text_file)], str(tmp_path / "prepared"))
    return str(tmp_path / "prepared")


@pytest.fixture
def on_host(monkeypatch) -> None:
    monkeypatch.setattr("shakegpt_jax.training.trainer._MAX_DEVICE_BYTES", 0)


def state(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_same_corpus(folder: str, file: str) -> None:
    ours, theirs = load_corpus(folder, 8), load_corpus(file, 8)
    assert (ours.tokenizer, ours.sha256) == (theirs.tokenizer, theirs.sha256)
    for name in ("train_ids", "val_ids"):
        assert isinstance(getattr(ours, name), np.memmap)
        assert getattr(ours, name).dtype == getattr(theirs, name).dtype
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_prepared_ids_are_those_of_the_file(folder, text_file):
    assert_same_corpus(folder, str(text_file))
    ids = Path(folder, "ids.bin").read_bytes()
    metadata = json.loads(Path(folder, "metadata.json").read_text())
    assert metadata["ids_sha256"] == hashlib.sha256(ids).hexdigest()
    assert metadata["text_sha256"] == hashlib.sha256(text_file.read_bytes()).hexdigest()
    assert sorted(os.listdir(folder)) == ["ids.bin", "metadata.json"]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_characters_may_lie_across_the_borders_of_pieces(tmp_path, monkeypatch, size):
    monkeypatch.setattr("shakegpt_jax.data.text._PIECE_BYTES", size)
    texts = [
        "\ufeffO\r\n\r\rGod\n\r",
        "\né ﬁ 🎭 \ufeff\r",
        "\nμ" + "".join(map(chr, range(300, 700))),
    ]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_bytes(text.encode())
    books = [str(tmp_path / f"{i}.txt") for i in range(3)]
    prepare_text(books, str(tmp_path / "prepared"))
    joined = "".join(map(read_text, books))  # each book has its own byte-order mark and line ends
    (tmp_path / "joined.txt").write_text(joined)
    assert_same_corpus(str(tmp_path / "prepared"), str(tmp_path / "joined.txt"))
    assert load_prepared(str(tmp_path / "prepared")).ids.dtype == np.uint16


def test_the_command_prepares_and_says_so(tmp_path, text_file, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command("prepare", text_file, text_file, "--output", "two books")
    assert (code, err) == (0, "")
    assert out == (
        "two books is ready: 40,000 characters, 58 distinct\n"
        "Train: shakegpt train --config.data.path='two books' --workdir='runs/two books'\n"
    )
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    _, out, _ = command("prepare", text_file, "windows.txt", "--output", "noted")
    assert out.splitlines()[0] == (
        r"windows.txt: 2 \r\n or \r became \n, the byte-order mark at the start was dropped"
    )
    before = state(tmp_path)
    code, out, err = command("prepare", text_file, text_file, "--output", "two books")
    assert (code, err) == (0, "") and "two books holds this text already" in out
    code, out, err = command("prepare", text_file, "--output", "two books")
    assert (code, out) == (2, "") and "two books holds another text" in one_line(err)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    (tmp_path / "file").write_text("keep")
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metadata.json").write_text('{"format_version": 1}')
    before = state(tmp_path)
    for args, message in [
        ((text_file, "--output", "mine"), "mine holds other files (notes)"),
        ((text_file, "--output", "file"), "file is a file; --output must be a folder"),
        ((text_file, "--output", "file/x"), "cannot write to file/x"),
        ((text_file, "--output", "run"), "run/metadata.json is corrupt, or not that of a prepared"),
        (("mine", "--output", "new"), "mine is a folder; give a UTF-8 text file"),
        ((text_file, "bad.txt", "--output", "new"), "bad.txt is not UTF-8: invalid start byte"),
        ((text_file, "none.txt", "--output", "new"), "no such file: none.txt"),
    ]:
        code, out, err = command("prepare", *args)
        assert (code, out) == (2, "")
        assert message in one_line(err)
        assert state(tmp_path) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("n", [30, 1000])
def test_starts_over_after_a_kill(tmp_path, text_file, n, command):
    """A process that ends in the second pass, or after it, leaves a folder that cannot train."""
    code = (
        "import os, sys; from shakegpt_jax.data import prepared, text\n"
        "text._PIECE_BYTES = 1000\n"
        "prepared._digest = lambda _: os._exit(9)\n"
        "calls = iter([*[1] * int(sys.argv[3]), 0])\n"
        "prepared.prepare_text(sys.argv[1:2], sys.argv[2], lambda _: next(calls) or os._exit(9))\n"
    )
    output = str(tmp_path / "out")
    killed = subprocess.run([sys.executable, "-c", code, text_file, output, str(n)], check=False)
    assert killed.returncode == 9
    assert os.listdir(output) == ["ids.bin"]
    with pytest.raises(UserError, match=r"is a folder; give a .*prepare` has finished"):
        load_corpus(output, 8)
    Path(output, "metadata.json.partial").write_text("{")
    assert command("prepare", text_file, "--output", output)[0] == 0
    assert_same_corpus(output, str(text_file))
    assert sorted(os.listdir(output)) == ["ids.bin", "metadata.json"]


def test_a_text_that_changes_meanwhile_is_not_finished(tmp_path, text):
    (tmp_path / "text.txt").write_text(text)

    def change(n: int) -> None:
        (tmp_path / "text.txt").write_text(text[:-1])

    with pytest.raises(UserError, match="the text changed while it was being read"):
        prepare_text([str(tmp_path / "text.txt")], str(tmp_path / "out"), change)
    assert not (tmp_path / "out" / "metadata.json").exists()


@pytest.mark.parametrize("name", ["ids.bin", "metadata.json"])
def test_refuses_a_corrupt_folder(folder, name):
    path = Path(folder, name)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for raw in (b"", whole[:-3], flipped, whole + b"0", b"[1]", b'{"metadata_sha256": ""}'):
        path.write_bytes(raw)
        with pytest.raises(UserError, match=f"{name} is corrupt") as error:
            load_corpus(folder, 8)
        assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(UserError, match=r"ids.bin is corrupt or missing|is a folder; give"):
        load_corpus(folder, 8)


def test_refuses_a_later_format(folder):
    path = Path(folder, "metadata.json")
    metadata = json.loads(path.read_text()) | {"format_version": 2}
    del metadata["metadata_sha256"]
    path.write_text(json.dumps(metadata | {"metadata_sha256": prepared._digest(metadata)}))
    with pytest.raises(UserError, match="has format version 2; upgrade"):
        load_corpus(folder, 8)


def test_refuses_texts_whose_windows_cannot_be_counted(text_file, folder, monkeypatch):
    monkeypatch.setattr("shakegpt_jax.data.corpus.MAX_CHARACTERS", 19_999)
    for path in (str(text_file), folder):
        with pytest.raises(UserError, match="the text has 20,000 characters; at most 19,999"):
            load_corpus(path, 8)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("n", [20_000, 2**31 - 1])
def test_host_windows_are_those_of_their_steps(config, tmp_path, n, replacement):
    dtype = np.uint8 if n == 20_000 else np.uint16
    ids = np.memmap(tmp_path / "ids.bin", dtype, mode="w+", shape=n)  # mostly a hole
    ids[:20_000] = ids[-20_000:] = np.random.default_rng(0).integers(0, 250, 20_000)
    ids.flush()
    config.data.batch_size, config.data.replacement = 64, replacement
    config.mesh.data = config.mesh.fsdp = config.mesh.tensor = 2
    chunks = HostWindows(config.freeze(), ids, make_mesh(config)).chunks(7, [3, 2])
    windows_KxBxT1 = np.concatenate([*chunks])
    if replacement:
        keys = [random_key(0, "windows", step) for step in range(7, 12)]
        starts_KxB = [np.asarray(sample_starts(key, n, 64, 8)) for key in keys]
    else:
        key = random_key(0, "windows", 0)
        starts_KxB = [np.asarray(shuffled_starts(key, step, n, 64, 8)) for step in range(7, 12)]
    expected = [[ids[start : start + 9] for start in starts_B] for starts_B in starts_KxB]
    np.testing.assert_array_equal(windows_KxBxT1, expected)
    starts = np.array([[0, n - 9]], np.int32)
    for each in (ids, np.asarray(ids)):
        np.testing.assert_array_equal(gather_on_host(each, starts, 8)[0], [ids[:9], ids[-9:]])
    os.truncate(tmp_path / "ids.bin", 100)
    with pytest.raises(OSError, match=r"ids\.bin is shorter than it was"):
        gather_on_host(ids, starts, 8)


def test_trains_from_the_host_as_from_the_device(config, folder, text_file, monkeypatch):
    """Up to rounding: the windows are the same, but XLA compiles two programs."""
    config.model.dropout = 0.5
    config.train.num_steps = config.train.eval_every = 6
    config.freeze()
    results = []
    for most, path in ((2**20, folder), (0, str(text_file))):
        monkeypatch.setattr("shakegpt_jax.training.trainer._MAX_DEVICE_BYTES", most)
        trainer = Trainer(config, load_corpus(path, 8), make_mesh(config))
        trainer.initialize()
        figures = [(row.step, row.train_loss, row.gradient_norm) for row in trainer.run(0, 6)]
        results.append((figures, jax.device_get(trainer.state.params)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def test_a_run_from_a_file_resumes_and_is_evaluated_with_the_folder(
    run_config, folder, finished_copy, on_host
):
    lm = load(finished_copy, step=12)
    shutil.rmtree(finished_copy / "checkpoints" / "12")
    run_config.data.path = folder
    train(run_config.freeze(), finished_copy)
    resumed = load(finished_copy, step=12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), resumed.params, lm.params
    )
    assert resumed.config.data.path == folder
    assert resumed.load_corpus().sha256 == lm.text_sha256
    assert resumed.generate("First", 20, draft=True, temperature=0) == resumed.generate(
        "First", 20, draft=False, temperature=0
    )
    last = read_metrics(finished_copy)[-1]
    for path in (None, lm.config.data.path, folder):
        result = select(finished_copy, step=12, split=path and "val", path=path).evaluate()
        assert result["loss"] == pytest.approx(last.evaluation.loss, rel=1e-6)


def test_pieces_are_whole_windows_spread_over_the_text():
    ids = np.arange(100_000)
    assert spread_pieces(ids, 0, 8)[0] is ids
    assert spread_pieces(ids, 99_999, 8)[0] is ids
    for most in (1, 8, 17, 1_000, 10_007, 99_998):
        pieces = spread_pieces(ids, most, 8)
        assert {(len(piece) - 1) % 8 for piece in pieces} == {0}
        targets = np.concatenate([piece[1:] for piece in pieces])
        assert len(set(targets)) == len(targets)
        assert len(targets) == 8 if most < 8 else most - 8 < len(targets) <= most
        assert pieces[0][0] == 0
        if len(pieces) > 1:
            assert pieces[-1][-1] == 99_999


def test_notes_of_a_run_and_evaluation_of_a_sample(run_config, text, tmp_path, capsys, command):
    run_config.train.eval_characters = 500
    run_config.data.path = str(tmp_path / "windows.txt")
    (tmp_path / "windows.txt").write_bytes(text.replace("\n", "\r\n").encode())
    train(run_config.freeze(), tmp_path / "run")
    note = "2,000 to validate (evaluations score about 500)"
    out = " ".join(capsys.readouterr().out.split())
    changed = rf"windows.txt: {text.count(chr(10))} \r\n or \r became \n"
    assert out.count(note) == out.count(changed) == 1
    row = read_metrics(tmp_path / "run")[-1]
    assert row.evaluation.count == 62 * 8
    lm = load(tmp_path / "run")
    pieces = spread_pieces(lm.load_corpus().val_ids, 500, 8)
    losses = [-lm.score(lm.tokenizer.decode(piece)) for piece in pieces]
    assert row.evaluation.loss == pytest.approx(np.concatenate(losses).mean(), rel=1e-5)
    same = json.loads(command("evaluate", "--workdir", tmp_path / "run", "--json")[1])
    assert same["loss"] == pytest.approx(row.evaluation.loss, rel=1e-5)
    assert same["sampled_from"] == 2_000
    assert "496, evenly spread over 2,000" in command("evaluate", "--workdir", tmp_path / "run")[1]
    whole = command("evaluate", "--workdir", tmp_path / "run", "--json", "--characters", 0)[1]
    assert json.loads(whole)["count"] == 1_999
    code, _, err = command("evaluate", "--workdir", tmp_path / "run", "--characters", -1)
    assert code == 2 and "--characters: '-1' is not a whole number from 0 to" in one_line(err)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path, text):
    peaks = []
    for n_copy in (1_000, 20_000):  # 20 and 400 MB
        with (tmp_path / "text.txt").open("w") as file:
            for _ in range(n_copy):
                file.write(text)
        output, workdir = str(tmp_path / str(n_copy)), str(tmp_path / f"run{n_copy}")
        code = (
            "import resource, sys; from conftest import small_config; from shakegpt_jax.training "
            "import run, trainer; from shakegpt_jax.data.prepared import prepare_text\n"
            "prepare_text(sys.argv[1:2], sys.argv[2])\n"
            "trainer._MAX_DEVICE_BYTES = 0\n"
            "config = small_config()\n"
            "config.data.path, config.data.batch_size = sys.argv[2], 256\n"
            "config.train.num_steps = config.train.eval_every = 500\n"
            "config.train.steps_per_dispatch = 50\n"
            "run.train(config.freeze(), sys.argv[3])\n"
            "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "text.txt"), output, workdir],
            cwd=Path(__file__).parent,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout.split()[-1]))
    print(f"peaks of {peaks[0] / 2**20:.0f} and {peaks[1] / 2**20:.0f} MiB")
    # The evaluation's sample is read through the mapping: a few pages around each piece.
    assert peaks[1] < peaks[0] + 128 * 2**20
