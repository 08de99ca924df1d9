"""Corruption of a checkpoint is found before it is used, and failed saves lose nothing."""

import contextlib
import hashlib
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from fakes import SmallFiles
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_checkpoints import ARRAYS, check_intact, metadata, restore, save

from shakegpt_jax import load
from shakegpt_jax.checkpoints import digests, reader
from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.writer import CheckpointWriter
from shakegpt_jax.config import Config
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


@pytest.mark.slow
def test_every_truncation_of_the_digests_is_found(saved):
    for length in range((saved / "checkpoints" / "1" / digests.DIGESTS).stat().st_size):
        check_corruption(saved, digests.DIGESTS, "truncated", length, 0)


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


def test_digests_cut_at_any_line_are_corrupt(saved_copy):
    path = saved_copy / "checkpoints" / "1" / digests.DIGESTS
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) > 10
    for n in range(len(lines)):
        path.write_text("".join(lines[:n]))
        with pytest.raises(CorruptCheckpointError):
            restore(saved_copy, 1)


def test_unlisted_files_are_ignored(saved_copy):
    checkpoints = saved_copy / "checkpoints"
    for stray in ("1/.DS_Store", "1/metadata.json~", "1/params/more", "7"):
        (checkpoints / stray).touch()
    with CheckpointWriter(saved_copy, 9, pytest.fail) as writer:
        assert writer.steps == [1, 2, 3]
    assert CheckpointReader(saved_copy).steps == [1, 2, 3]
    restore(saved_copy, 1)


def test_unreadable_file_is_not_taken_for_corruption(saved_copy, monkeypatch):
    file_digest = hashlib.file_digest

    def fail(file, kind):
        if "/checkpoints/1/" in file.name:
            raise OSError(24, "Too many open files")
        return file_digest(file, kind)

    monkeypatch.setattr("hashlib.file_digest", fail)
    with pytest.raises(UserError, match=r"cannot read .*: Too many open files"):
        CheckpointWriter(saved_copy, 9, pytest.fail)
    assert CheckpointReader(saved_copy).steps == [1, 2, 3]


def test_unreadable_folder_is_reported(saved_copy, monkeypatch):
    def refuse(self):  # a file mode would not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"cannot read .*checkpoints: Permission denied"):
        load(saved_copy)


def test_changes_nothing_if_no_valid_checkpoint_remains(run_config, finished_copy):
    for step in ("6", "12"):
        corrupt(finished_copy / "checkpoints" / step / "metadata.json")
    metrics = (finished_copy / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match=r"corrupt.*; no valid checkpoint remains: remove"):
        train(run_config.freeze(), finished_copy)
    assert CheckpointReader(finished_copy).steps == [6, 12]
    assert (finished_copy / "metrics.jsonl").read_text() == metrics
    with pytest.raises(CorruptCheckpointError, match="the other checkpoints are corrupt too"):
        load(finished_copy)


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


def test_corrupt_checkpoints_are_renamed_when_training_starts(saved_copy):
    checkpoints = saved_copy / "checkpoints"
    for step, name in ((3, "metadata.json"), (1, "params/_METADATA")):
        corrupt(checkpoints / str(step) / name)
    (checkpoints / "4").mkdir()
    reports: list[str] = []
    with CheckpointWriter(saved_copy, 9, reports.append) as writer:
        assert writer.steps == [2]
    assert len(reports) == 3
    assert re.search(r"1/params/_METADATA is corrupt.* of step 1 to .*1\.corrupt", reports[0])
    assert re.search(r"4/SHA256SUMS is missing.* to .*4\.corrupt", reports[2])
    assert CheckpointReader(saved_copy).steps == [2]


def test_training_resumes_from_an_older_checkpoint_and_loading_refuses(
    run_config, finished, finished_copy, capsys
):
    (newest,) = (finished_copy / "checkpoints" / "12" / "params").glob("d/*")
    corrupt(newest, "flipped", 100)
    with pytest.raises(CorruptCheckpointError, match=r"params/d/.* is corrupt.*; intact: \[6\]"):
        load(finished_copy, step=12)
    capsys.readouterr()
    train(run_config.freeze(), finished_copy)
    out = capsys.readouterr().out.replace("\n", " ")
    assert "is corrupt" in out and "resumes at step 6 of 12" in out
    ours, theirs = (load(workdir, step=12).params for workdir in (finished_copy, finished))
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


@pytest.fixture
def apart(processes) -> Callable[..., None]:
    """Calls a function in a process of its own.

    A failed save leaves coroutines and futures behind in Orbax and TensorStore, which would warn
    when they are collected, in whatever test runs by then.
    """

    def call(function: Callable[..., None], *args: object) -> None:
        process = processes.Process(target=function, args=args)
        process.start()
        process.join(120)
        process.kill()
        assert process.exitcode == 0

    return call


def _fail_to_save(workdir: Path) -> None:
    reports: list[str] = []

    def attempt(step: int) -> None:
        assert list((workdir / "checkpoints" / "tmp").iterdir()) == []
        checkpoints.save(step, *ARRAYS.values(), {"loss": 1.0 / step}, metadata())
        checkpoints.wait()

    errors = io.StringIO()
    with (
        contextlib.redirect_stderr(errors),
        CheckpointWriter(workdir, 9, reports.append) as checkpoints,
    ):
        attempt(1)
        with SmallFiles():
            attempt(2)
            attempt(3)
        assert len(reports) == 2
        assert re.search(r"could not save .* step 3 \(.+\); the last good .* step 1", reports[1])
        attempt(4)
        with SmallFiles():
            attempt(5)
            attempt(6)
            with pytest.raises(SaveError, match=r"step 7 .*third failure in a row.* step 4"):
                attempt(7)
    assert errors.getvalue() == ""  # Orbax would log hundreds of lines


def test_failed_saves_are_reported_and_the_third_in_a_row_ends_the_run(tmp_path, apart):
    apart(_fail_to_save, tmp_path)
    assert CheckpointReader(tmp_path).steps == [1, 4]
    check_intact(tmp_path, 1)
    check_intact(tmp_path, 4)


def _remove_the_folder(workdir: Path) -> None:
    reports: list[str] = []
    with CheckpointWriter(workdir, 9, reports.append) as checkpoints:
        shutil.rmtree(workdir)
        with pytest.raises(SaveError, match="third failure in a row; there is no earlier"):
            for step in range(4):
                checkpoints.save(step, *ARRAYS.values(), None, metadata())
    assert len(reports) == 2


def test_removed_run_folder_is_reported(tmp_path, apart):
    apart(_remove_the_folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _fail_twice_at_the_end(config: Config, workdir: Path) -> None:
    jax.config.update("jax_disable_most_optimizations", True)  # as in the tests' own process
    save_whole = CheckpointWriter.save
    attempts = []

    def fail_twice(self, step, *args):
        attempts.append(step)
        with SmallFiles() if attempts.count(12) in (1, 2) else contextlib.nullcontext():
            save_whole(self, step, *args)
            self.wait()

    CheckpointWriter.save = fail_twice  # type: ignore[method-assign]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        train(config, workdir)
    assert attempts == [6, 12, 12, 12]
    assert out.getvalue().count("could not save the checkpoint of step 12") == 2


@pytest.mark.slow
def test_the_last_save_is_tried_until_it_succeeds(run_config, tmp_path, apart):
    apart(_fail_twice_at_the_end, run_config.freeze(), tmp_path / "run")
    assert CheckpointReader(tmp_path / "run").steps == [6, 12]


def test_checkpoint_that_cannot_be_removed_is_reported(tmp_path, monkeypatch):
    def no_rmtree(path, ignore_errors=False):
        if not ignore_errors:
            raise OSError(5, "Input/output error")

    reports: list[str] = []
    with CheckpointWriter(tmp_path, 1, reports.append) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, *ARRAYS.values(), {"loss": 1.0 / step}, metadata())
            checkpoints.wait()
            monkeypatch.setattr("shutil.rmtree", no_rmtree)
    monkeypatch.undo()
    assert CheckpointReader(tmp_path).steps == [3]
    assert reports == [
        f"could not remove the checkpoint of step {step}: Input/output error" for step in (1, 2)
    ]
