"""Damage to a checkpoint is found before anything is used, and saves that fail lose nothing."""

import contextlib
import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable
from multiprocessing.context import BaseContext
from pathlib import Path

import jax
import numpy as np
import pytest
from fakes import SmallFiles
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shakegpt_jax import load, manifest
from shakegpt_jax.checkpoint import Checkpoints, CheckpointWriter
from shakegpt_jax.config import Config
from shakegpt_jax.errors import DamagedError, SaveError, UserError
from shakegpt_jax.run_info import RunInfo
from shakegpt_jax.sharding import on_one_device
from shakegpt_jax.train import train

ARRAYS = {
    "params": {"w": np.arange(12, dtype=np.float32)},
    "opt_state": (np.arange(3, dtype=np.int32),),
}


def info() -> RunInfo:
    return RunInfo(Config().freeze(), "ab", "0" * 64)


def save(workdir: Path, steps: list[int], report=pytest.fail) -> None:
    with CheckpointWriter(workdir, 9, report) as checkpoints:
        for step in steps:
            checkpoints.save(step, *ARRAYS.values(), {"loss": 1.0 / step}, info())


def restore(workdir: Path, step: int) -> list[np.ndarray]:
    checkpoints = Checkpoints(workdir)
    assert checkpoints.run_info(step) == info()
    assert checkpoints.metrics(step) == {"loss": 1.0 / step}
    return jax.tree.leaves(checkpoints.restore(step, on_one_device(jax.eval_shape(lambda: ARRAYS))))


def damage(path: Path, how: str, where: int, bits: int) -> None:
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
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, [1])
    return workdir


def check_damage(saved: Path, name: str, how: str, where: int, bits: int) -> None:
    """Refused, or as if nothing had happened (a changed line end of the list of digests)."""
    workdir = saved / "damaged"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(saved / "checkpoints", workdir / "checkpoints")
    path = workdir / "checkpoints" / "1" / name
    before = path.read_bytes()
    damage(path, how, where, bits)
    try:
        restored = restore(workdir, 1)
    except DamagedError as error:
        assert name == manifest.NAME or str(path) in str(error)
        return
    assert name == manifest.NAME or (path.exists() and path.read_bytes() == before)
    for ours, theirs in zip(restored, jax.tree.leaves(ARRAYS), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def files(saved: Path) -> list[str]:
    folder = saved / "checkpoints" / "1"
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def tiny(config, tmp_path, text) -> Config:
    (tmp_path / "text.txt").write_text(text)
    config.data.path = str(tmp_path / "text.txt")
    return config


HOW = st.sampled_from(["flipped", "flipped", "flipped", "truncated", "removed"])


@settings(
    derandomize=True,
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), how=HOW, where=st.integers(0, 2**20), bits=st.integers(1, 255))
def test_any_damage_is_found(saved, data, how, where, bits):
    check_damage(saved, data.draw(st.sampled_from(files(saved))), how, where, bits)


@pytest.mark.slow
def test_every_byte_counts(saved):
    """Every byte of every file flipped, one after another."""
    count = 0
    for name in files(saved):
        for where in range((saved / "checkpoints" / "1" / name).stat().st_size):
            check_damage(saved, name, "flipped", where, 1 << where % 8)
            count += 1
    print(count, "bytes flipped")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda p: shutil.rmtree(p) or p.mkdir(), "SHA256SUMS is missing"),
        (lambda p: (p / "SHA256SUMS").write_text("x"), "SHA256SUMS is damaged: it has the line"),
        (lambda p: (p / "SHA256SUMS").write_bytes(b"\xff"), "SHA256SUMS is damaged: it has"),
        (lambda p: (p / "SHA256SUMS").write_text(""), "does not list it"),
        (lambda p: (p / "params" / "more").touch(), "more does not belong there: SHA256SUMS"),
        (
            lambda p: (p / "params" / "link").symlink_to("/etc/passwd"),
            "link does not belong there: it is a link",
        ),
        (
            lambda p: (p / "SHA256SUMS").unlink() or os.mkfifo(p / "SHA256SUMS"),
            "SHA256SUMS is missing",
        ),
        (
            lambda p: os.truncate(p / "SHA256SUMS", 20 * 2**30),
            "SHA256SUMS is damaged: it is larger than",
        ),
        (
            lambda p: (p / "metadata.json").unlink() or os.mkfifo(p / "metadata.json"),
            "metadata.json does not belong there: it is a link, or no file at all",
        ),
        (
            lambda p: (p / "SHA256SUMS").write_text(f"{'0' * 64}  ../../../metrics.jsonl\n"),
            "metrics.jsonl is missing",
        ),
    ],
)
def test_what_is_damaged_is_named(tmp_path, break_it, message):
    save(tmp_path, [1])
    break_it(tmp_path / "checkpoints" / "1")
    with pytest.raises(DamagedError, match=re.escape(message)):
        restore(tmp_path, 1)


def test_what_a_file_manager_leaves_does_no_harm(tmp_path):
    save(tmp_path, [1])
    (tmp_path / "checkpoints" / "1" / ".DS_Store").touch()
    restore(tmp_path, 1)


def test_an_unreadable_file_is_not_taken_for_damage(tmp_path, monkeypatch):
    save(tmp_path, [1, 2])
    file_digest = hashlib.file_digest

    def fail(file, kind):
        if "/checkpoints/1/" in file.name:
            raise OSError(24, "Too many open files")
        return file_digest(file, kind)

    monkeypatch.setattr("hashlib.file_digest", fail)
    with pytest.raises(UserError, match="cannot be read: Too many open files"):
        CheckpointWriter(tmp_path, 9, pytest.fail)
    assert Checkpoints(tmp_path).steps == [1, 2]


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/1", "lock", "metrics.tmp"])
def test_links_lead_nowhere(tiny, tmp_path, name):
    run, outside = tmp_path / "run", tmp_path / "outside"
    train(tiny.freeze(), run)
    (run / "checkpoints" / "6").rename(run / "checkpoints" / "1")
    if name.startswith("checkpoints"):
        (run / name).rename(outside)
    else:
        outside.write_text("precious")
        (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside)
    if name == "metrics.tmp":
        train(tiny, run)
        assert not (run / "metrics.jsonl").is_symlink()
    else:
        with pytest.raises(UserError):
            train(tiny, run)
    if outside.is_file():
        assert outside.read_text() == "precious"
    else:
        with pytest.raises(UserError, match="is a link; a run folder must hold its own files"):
            load(run)


def test_nothing_is_changed_where_no_checkpoint_is_left(tiny, tmp_path):
    train(tiny.freeze(), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    damage(tmp_path / "run" / "checkpoints" / "12" / "metadata.json", "flipped", 5, 1)
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match=r"damaged.*; no checkpoint is left to go on from: remove"):
        train(tiny, tmp_path / "run")
    assert Checkpoints(tmp_path / "run").steps == [12]
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == metrics


def test_reading_goes_on_while_training_replaces_checkpoints(tiny, tmp_path, monkeypatch):
    train(tiny.freeze(), tmp_path / "run")
    verify = manifest.verify

    def prune_first(folder, leave_out=()):
        if folder.name == "6":
            shutil.rmtree(folder)
        verify(folder, leave_out)

    monkeypatch.setattr(manifest, "verify", prune_first)
    assert load(tmp_path / "run").generate("First", 5)


def test_damage_to_what_is_not_read_does_not_matter(tmp_path):
    save(tmp_path, [1])
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "opt_state")
    params = on_one_device(jax.eval_shape(lambda: {"params": ARRAYS["params"]}))
    restored = Checkpoints(tmp_path).restore(1, params)
    np.testing.assert_array_equal(restored["params"]["w"], ARRAYS["params"]["w"])


def test_hostile_metadata_with_good_digests_is_refused(tmp_path):
    save(tmp_path, [1])
    folder = tmp_path / "checkpoints" / "1"
    for metadata, message in (
        ("[" * 100_000, "cannot be used"),
        ("{}", "its format_version is None"),
        (folder.joinpath("metadata.json").read_text().replace("1.0}", "NaN}"), "its metrics"),
    ):
        (folder / "metadata.json").write_text(metadata)
        manifest.write(folder)
        with pytest.raises(UserError, match=message):
            Checkpoints(tmp_path).find("best")


def test_damaged_checkpoints_are_set_aside_when_a_run_goes_on(tmp_path):
    save(tmp_path, [1, 2, 3])
    for step, name in ((3, "metadata.json"), (1, "params/_METADATA")):
        damage(tmp_path / "checkpoints" / str(step) / name, "flipped", 5, 1)
    (tmp_path / "checkpoints" / "4").mkdir()
    reports: list[str] = []
    with CheckpointWriter(tmp_path, 9, reports.append) as checkpoints:
        assert checkpoints.steps == [2]
    assert len(reports) == 3
    assert re.search(r"1/params/_METADATA is damaged.* step 1 is now .*1\.damaged", reports[0])
    assert re.search(r"4/SHA256SUMS is missing.* now .*4\.damaged", reports[2])
    assert Checkpoints(tmp_path).steps == [2]


def test_training_walks_back_and_commands_refuse(tiny, tmp_path, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(tiny.freeze(), whole)
    shutil.copytree(whole, broken)
    (newest,) = (broken / "checkpoints" / "12" / "params").glob("d/*")
    damage(newest, "flipped", 100, 1)
    with pytest.raises(
        DamagedError, match=r"params/d/.* is damaged.*another step may do, of \[6, 12\]"
    ):
        load(broken, step=12)
    capsys.readouterr()
    train(tiny, broken)
    out = capsys.readouterr().out.replace("\n", " ")
    assert "is damaged" in out and "goes on from step 6 of 12" in out
    for ours, theirs in zip(
        jax.tree.leaves(load(broken, step=12).params),
        jax.tree.leaves(load(whole, step=12).params),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture
def apart(context: BaseContext) -> Callable[..., None]:
    """Calls a function in a process of its own, which prints how it failed.

    A save that fails leaves coroutines and futures behind in Orbax and TensorStore, which warn
    when they are collected: in whatever test the process has come to by then.
    """

    def call(function: Callable[..., None], *args: object) -> None:
        process = context.Process(target=function, args=args)
        process.start()
        process.join(120)
        process.kill()
        assert process.exitcode == 0

    return call


def _fail_to_save(workdir: Path) -> None:
    reports: list[str] = []

    def attempt(step: int) -> None:
        assert list((workdir / "checkpoints" / "tmp").iterdir()) == []
        checkpoints.save(step, *ARRAYS.values(), {"loss": 1.0 / step}, info())
        checkpoints.wait()

    with CheckpointWriter(workdir, 9, reports.append) as checkpoints:
        attempt(1)
        with SmallFiles():
            attempt(2)
            attempt(3)
        assert len(reports) == 2
        assert re.search(
            r"step 3 could not be saved \(.+\); the last good .* of step 1", reports[1]
        )
        attempt(4)
        with SmallFiles():
            attempt(5)
            attempt(6)
            with pytest.raises(SaveError, match=r"7 could not.*the third in a row.*of step 4"):
                attempt(7)


def test_saves_that_fail_are_reported_and_the_third_in_a_row_ends_the_run(tmp_path, apart):
    apart(_fail_to_save, tmp_path)
    assert Checkpoints(tmp_path).steps == [1, 4]
    restore(tmp_path, 1)
    restore(tmp_path, 4)


def _remove_the_folder(workdir: Path) -> None:
    reports: list[str] = []
    with CheckpointWriter(workdir, 9, reports.append) as checkpoints:
        shutil.rmtree(workdir)
        with pytest.raises(SaveError, match="third in a row; there is no earlier checkpoint"):
            for step in range(4):
                checkpoints.save(step, *ARRAYS.values(), None, info())
    assert len(reports) == 2


def test_a_folder_that_is_removed_is_reported(tmp_path, apart):
    apart(_remove_the_folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _fail_twice_at_the_end(config: Config, workdir: Path) -> None:
    jax.config.update("jax_disable_most_optimizations", True)  # as the tests themselves do
    save_whole = CheckpointWriter.save
    attempts = []

    def fail_twice(self, step, *args):
        attempts.append(step)
        with SmallFiles() if attempts.count(12) in (1, 2) else contextlib.nullcontext():
            save_whole(self, step, *args)
            self.wait()

    CheckpointWriter.save = fail_twice
    with contextlib.redirect_stdout(io.StringIO()) as out:
        train(config, workdir)
    assert attempts == [6, 12, 12, 12]
    assert out.getvalue().count("step 12 could not be saved") == 2


def test_the_last_state_is_tried_until_it_is_saved(tiny, tmp_path, apart):
    apart(_fail_twice_at_the_end, tiny.freeze(), tmp_path / "run")
    assert Checkpoints(tmp_path / "run").steps == [6, 12]


def test_what_cannot_be_pruned_is_reported_and_the_save_counts(tmp_path, monkeypatch):
    reports: list[str] = []
    with CheckpointWriter(tmp_path, 1, reports.append) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, *ARRAYS.values(), {"loss": 1.0 / step}, info())
            checkpoints.wait()
            monkeypatch.setattr("shutil.rmtree", _no_rmtree)
    monkeypatch.undo()
    assert Checkpoints(tmp_path).steps == [3]
    assert reports == [
        f"the checkpoint of step {step} could not be removed: Input/output error" for step in (1, 2)
    ]


def _no_rmtree(path, ignore_errors=False):
    if not ignore_errors:
        raise OSError(5, "Input/output error")
