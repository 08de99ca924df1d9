"""Corruption of a checkpoint is found before it is used, and failed saves lose nothing."""

import contextlib
import io
import multiprocessing
import os
import re
import shutil
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import jax
import numpy as np
import pytest
from fakes import SmallFiles, one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_checkpoints import ARRAYS, check_intact, metadata, restore, save

from shakegpt_jax import load
from shakegpt_jax.checkpoints import digests, reader
from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.writer import CheckpointWriter
from shakegpt_jax.cli.command import run_command
from shakegpt_jax.errors import CorruptCheckpointError, SaveError, UserError
from shakegpt_jax.training.run import train


def corrupt(path: Path, how: str = "flipped", where: int = 5, bits: int = 1) -> None:
    content = bytearray(path.read_bytes())
    if how == "removed":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: where % max(1, len(content))])
    elif content:
        content[where % len(content)] ^= bits
        path.write_bytes(content)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run folder with three checkpoints. Do not change it."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, [1, 2, 3])
    return workdir


@pytest.fixture
def saved_copy(saved: Path, tmp_path: Path) -> Path:
    """A run folder with three checkpoints to change."""
    return Path(shutil.copytree(saved, tmp_path / "saved"))


def check_corruption(saved: Path, name: str, how: str, where: int, bits: int) -> None:
    """Corruption is refused, or has no effect (a changed line end in the list of digests)."""
    workdir = saved / "corrupted"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(saved / "checkpoints" / "1", workdir / "checkpoints" / "1")
    path = workdir / "checkpoints" / "1" / name
    before = path.read_bytes()
    corrupt(path, how, where, bits)
    try:
        check_intact(workdir, 1)
    except CorruptCheckpointError as error:
        assert name == digests.DIGESTS or str(path) in str(error)
        return
    assert name == digests.DIGESTS or (path.exists() and path.read_bytes() == before)


def files(saved: Path) -> list[str]:
    folder = saved / "checkpoints" / "1"
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


HOW = st.sampled_from(["flipped", "flipped", "flipped", "truncated", "removed"])


@settings(
    derandomize=True,
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), how=HOW, where=st.integers(0, 2**20), bits=st.integers(1, 255))
def test_any_corruption_is_found(saved, data, how, where, bits):
    check_corruption(saved, data.draw(st.sampled_from(files(saved))), how, where, bits)


@pytest.mark.slow
def test_every_flipped_byte_is_found(saved):
    count = 0
    for name in files(saved):
        for where in range((saved / "checkpoints" / "1" / name).stat().st_size):
            check_corruption(saved, name, "flipped", where, 1 << where % 8)
            count += 1
    print(count, "bytes flipped")


def test_every_truncation_of_the_digests_is_found(saved):
    folder = saved / "checkpoints" / "1"
    content = (folder / digests.DIGESTS).read_bytes()
    copy = saved / "truncated"
    copy.mkdir()
    for length in range(len(content) - 1):  # a missing line end has no effect
        (copy / digests.DIGESTS).write_bytes(content[:length])
        with pytest.raises(CorruptCheckpointError):
            digests.listed_digests(copy)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda p: shutil.rmtree(p) or p.mkdir(), "SHA256SUMS is missing"),
        (lambda p: (p / "SHA256SUMS").write_text("x"), "SHA256SUMS is corrupt: line 'x'"),
        (lambda p: (p / "SHA256SUMS").write_bytes(b"\xff"), "SHA256SUMS is corrupt: line"),
        (lambda p: (p / "SHA256SUMS").write_text(""), "it does not list metadata.json"),
        (lambda p: (p / "metadata.json").unlink(), "metadata.json is missing"),
        (lambda p: corrupt(p / "metadata.json"), "metadata.json is corrupt: its SHA-256 differs"),
    ],
)
def test_names_what_is_corrupt(saved_copy, break_it, message):
    break_it(saved_copy / "checkpoints" / "1")
    with pytest.raises(CorruptCheckpointError, match=re.escape(message)):
        restore(saved_copy, 1)


def test_unlisted_files_are_ignored(saved_copy):
    checkpoints = saved_copy / "checkpoints"
    for stray in ("1/.DS_Store", "1/metadata.json~", "1/params/more", "7"):
        (checkpoints / stray).touch()
    with CheckpointWriter(saved_copy, 9) as writer:
        assert writer.steps == [1, 2, 3]
    assert CheckpointReader(saved_copy).steps == [1, 2, 3]
    restore(saved_copy, 1)


def test_unreadable_file_is_not_taken_for_corruption(saved_copy, monkeypatch):
    def fail(file, kind):  # a file mode would not stop root
        raise PermissionError(13, "Permission denied", file.name)

    monkeypatch.setattr("hashlib.file_digest", fail)
    with pytest.raises(UserError, match=r"cannot read .*/1/.*: Permission denied") as error:
        restore(saved_copy, 1)
    assert not isinstance(error.value, CorruptCheckpointError)


def test_training_stops_at_a_corrupt_checkpoint_and_goes_on_without_it(
    run_config, finished, finished_copy, tmp_path
):
    (array,) = (finished_copy / "checkpoints" / "12" / "params").glob("d/*")
    corrupt(array, "flipped", 100)
    before = {path: path.read_bytes() for path in finished_copy.rglob("*") if path.is_file()}
    message = rf"{array} is corrupt: .* intact checkpoint is that of step 6; remove .*/12 to go on"
    with pytest.raises(CorruptCheckpointError, match=message):
        train(run_config.freeze(), finished_copy)
    with pytest.raises(CorruptCheckpointError, match=message):
        load(finished_copy, step=12)
    tuned = run_config.replace({"train.init_from": str(finished_copy)})
    with pytest.raises(CorruptCheckpointError, match=message):
        train(tuned, tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()
    for path, content in before.items():
        assert path.name == "lock" or path.read_bytes() == content
    shutil.rmtree(finished_copy / "checkpoints" / "12")
    train(run_config.freeze(), finished_copy)
    ours, theirs = (load(workdir, step=12).params for workdir in (finished_copy, finished))
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


def test_says_so_if_no_checkpoint_is_intact(run_config, finished_copy):
    for step in ("6", "12"):
        corrupt(finished_copy / "checkpoints" / step / "metadata.json")
    for use in (load, lambda workdir: train(run_config.freeze(), workdir)):
        with pytest.raises(CorruptCheckpointError, match="; no other checkpoint is intact"):
            use(finished_copy)
    assert CheckpointReader(finished_copy).steps == [6, 12]


def test_reading_continues_while_training_replaces_checkpoints(finished_copy, monkeypatch):
    verify = digests.verify_digests

    def prune_first(folder, skip=()):
        if folder.name == "6":
            shutil.rmtree(folder)
        verify(folder, skip)

    monkeypatch.setattr(reader, "verify_digests", prune_first)
    assert load(finished_copy).generate("First", 5)


def test_loading_does_not_read_the_optimizer_state(finished_copy, capfd):
    state = finished_copy / "checkpoints" / "12" / "opt_state"
    (array,) = state.glob("d/*")
    for path in (array, state / "manifest.ocdbt"):
        path.write_bytes(b"garbage")
    assert load(finished_copy, step=12).generate("First", 5)
    shutil.rmtree(state)
    assert load(finished_copy, step=12).generate("First", 5)
    assert capfd.readouterr().err == ""


def test_refuses_invalid_metadata_with_valid_digests(saved_copy):
    folder = saved_copy / "checkpoints" / "1"
    content = (folder / "metadata.json").read_text()
    for changed, message in (
        ("[", "cannot use the checkpoint"),
        ("{}", "its format_version is None"),
        (content.replace("1.0}", "NaN}"), "its metrics must map names to finite numbers"),
    ):
        (folder / "metadata.json").write_text(changed)
        digests.write_digests(folder)
        with pytest.raises(UserError, match=message):
            CheckpointReader(saved_copy).find("best")


def _save_in_vain(workdir: Path, fault: str, errors: Connection) -> None:
    os.dup2(errors.fileno(), 2)
    sys.stdout, sys.stderr = io.StringIO(), open(2, "w")  # noqa: SIM115  # not that of pytest

    def save_twice() -> None:
        with CheckpointWriter(workdir, 9) as checkpoints:
            checkpoints.save(1, *ARRAYS.values(), {"loss": 1.0}, metadata())
            checkpoints.wait()
            if fault == "removed":
                shutil.rmtree(workdir)
            with SmallFiles() if fault == "full" else contextlib.nullcontext():
                checkpoints.save(2, *ARRAYS.values(), {"loss": 0.5}, metadata())
                checkpoints.wait()

    run_command(save_twice)


@pytest.mark.parametrize("fault", ["full", "removed"])
def test_a_failed_save_ends_with_one_line(tmp_path, processes, fault):
    # In a process of its own: Orbax and TensorStore leave coroutines behind, which would warn.
    read, write = multiprocessing.Pipe(duplex=False)
    process = processes.Process(target=_save_in_vain, args=(tmp_path / "run", fault, write))
    process.start()
    write.close()
    with open(read.fileno(), closefd=False) as errors:
        line = one_line(errors.read())
    process.join()
    assert process.exitcode == SaveError.exit_code
    assert re.search(
        r"could not save the checkpoint of step 2 \(.+\); the last good .* step 1", line
    )
    if fault == "full":
        check_intact(tmp_path / "run", 1)
        assert os.listdir(tmp_path / "run" / "checkpoints") == ["1"]
    else:
        assert not (tmp_path / "run").exists()


def test_an_incomplete_save_never_becomes_a_checkpoint(tmp_path, monkeypatch):
    def unsafe(folder: Path) -> contextlib.AbstractContextManager[Path]:
        return contextlib.nullcontext(folder)

    monkeypatch.setattr("shakegpt_jax.checkpoints.writer.literal_path", unsafe)
    with pytest.raises(SaveError, match=r"step 1 .*params/manifest.ocdbt'\); there is no earlier"):
        save(tmp_path / "[1]", [1])
    assert CheckpointReader(tmp_path / "[1]").steps == []
