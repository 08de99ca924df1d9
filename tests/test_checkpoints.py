import os
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.run_folder import RunMetadata, find_run, find_runs, short_names
from shakegpt_jax.checkpoints.writer import CheckpointWriter
from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError
from shakegpt_jax.sharding import on_one_device


@pytest.fixture
def metadata(config) -> RunMetadata:
    return RunMetadata(config.freeze(), "\n !'ab", "0123456789abcdef" * 4)


def state(step: int) -> tuple[dict, dict]:
    key = jax.random.key(step)
    params = {"w": jax.random.normal(key, (4, 3)), "b": jnp.float32(step)}
    step = jnp.int32(step)
    return params, (
        optax.ScaleByAdamState(step, params, params),
        {},
        jnp.arange(3, dtype=jnp.bfloat16),
    )


def save(workdir, metadata: RunMetadata, losses: list[float], keep: int = 1) -> None:
    with CheckpointWriter(workdir, keep) as checkpoints:
        for step, loss in enumerate(losses, start=1):
            checkpoints.save(step, *state(step), {"loss": loss}, metadata)


def test_restores_what_was_saved(tmp_path, metadata):
    save(tmp_path, metadata, [2.0])
    saved = dict(zip(("params", "opt_state"), state(1), strict=True))
    checkpoints = CheckpointReader(tmp_path)
    assert checkpoints.read("best") == (1, tmp_path / "checkpoints" / "1", metadata, {"loss": 2.0})
    for names in (["params"], ["params", "opt_state"]):
        expected = {name: saved[name] for name in names}
        shapes = jax.eval_shape(lambda expected=expected: expected)
        restored = checkpoints.restore(1, on_one_device(shapes))
        assert jax.tree.structure(restored) == jax.tree.structure(expected)
        for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("losses", "keep", "kept"),
    [
        ([3.0, 2.0, 1.0], 1, [3]),
        ([1.0, 2.0, 3.0], 1, [1, 3]),  # overfitting: the best and the newest
        ([3.0, 1.0, 2.0, 4.0], 2, [2, 3, 4]),
    ],
)
def test_keeps_latest_and_best(tmp_path, metadata, losses, keep, kept):
    save(tmp_path, metadata, losses, keep)
    checkpoints = CheckpointReader(tmp_path)
    assert checkpoints.steps == kept
    assert checkpoints.find("latest") == len(losses)
    assert checkpoints.find("best") == int(np.argmin(losses)) + 1
    assert checkpoints.find(kept[0]) == kept[0]
    with pytest.raises(UserError, match="no checkpoint of step 9; there are: "):
        checkpoints.find(9)


def test_checkpoint_without_metrics_is_never_the_best(tmp_path, metadata):
    with CheckpointWriter(tmp_path, 1) as checkpoints:
        checkpoints.save(1, *state(1), None, metadata)
    with CheckpointWriter(tmp_path, 1) as checkpoints:
        assert checkpoints.find("best") == checkpoints.find("latest") == 1
        assert checkpoints.read(1).metrics == {}
        checkpoints.save(2, *state(2), {"loss": 2.0}, metadata)
        checkpoints.save(3, *state(3), None, metadata)
    with CheckpointWriter(tmp_path, 1) as checkpoints:
        assert (checkpoints.find("best"), checkpoints.find("latest")) == (2, 3)
        with pytest.raises(UserError, match=re.escape("there are: [2, 3]")):
            checkpoints.find(1)


def test_reading_ignores_unfinished_saves_and_writing_removes_them(tmp_path, metadata):
    save(tmp_path, metadata, [2.0])
    under_way = tmp_path / "checkpoints" / "tmp" / "2"
    under_way.mkdir(parents=True)
    assert CheckpointReader(tmp_path).find("latest") == 1
    assert under_way.exists()
    with CheckpointWriter(tmp_path, 1):
        assert not under_way.exists()
    assert not under_way.parent.exists()


def changed_config(section: str, name: str, value: object) -> dict:
    config = Config().to_dict()
    config[section][name] = value
    return {"config": config}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "its format_version is 2; this shakegpt_jax reads 1, a newer"),
        ({"format_version": True}, "its format_version is True; this"),
        ({"config": None}, "the config is None"),
        ({"config": Config().to_dict() | {"model": 3}}, "config.model is 3"),
        ({"config": Config().to_dict() | {"model": {}}}, "config.model lacks block_size"),
        (changed_config("model", "__class__", 1), "no config field __class__"),
        (changed_config("model", "n_layer", 10**9), "n_layer is 1000000000; it must be a whole"),
        (changed_config("optimizer", "eps", 10**400), "eps is 1000"),
        ({"vocabulary": ""}, "vocabulary is empty or not a string"),
        ({"vocabulary": "ba"}, "vocabulary is unsorted or has duplicates"),
        ({"text_sha256": "../../etc"}, "text_sha256 is not a SHA-256"),
    ],
)
def test_refuses_metadata_that_no_run_wrote(metadata, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        RunMetadata.from_json(metadata.to_json() | changes)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.data())
def test_any_metadata_is_read_or_refused(data):
    """Replace one value anywhere in valid metadata by another of any type."""
    content = RunMetadata(Config().freeze(), "ab", "0" * 64).to_json()
    target = content
    while isinstance(target, dict):
        parent, key = target, data.draw(st.sampled_from(sorted(target)))
        target = parent[key]
        if isinstance(target, dict) and data.draw(st.booleans()):
            break
    parent[key] = data.draw(json_values)
    try:
        read = RunMetadata.from_json(content)
    except UserError:
        return
    assert RunMetadata.from_json(read.to_json()) == read


def test_refuses_arrays_of_another_shape_or_dtype(tmp_path, metadata):
    save(tmp_path, metadata, [2.0])
    for other in (jnp.zeros((4, 4)), jnp.zeros((4, 3), jnp.bfloat16)):
        shapes = jax.eval_shape(lambda other=other: {"params": state(1)[0] | {"w": other}})
        with pytest.raises(UserError, match="params does not match its config: w is float32"):
            CheckpointReader(tmp_path).restore(1, on_one_device(shapes))


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("name", ["params", "opt_state"])
def test_refuses_arrays_that_are_not_finite(tmp_path, metadata, name, value):
    params, (adam, *others) = state(1)
    broken = {"w": params["w"].at[3, 2].set(value), "b": params["b"]}
    params, adam = (broken, adam) if name == "params" else (params, adam._replace(nu=broken))
    with CheckpointWriter(tmp_path, 1) as checkpoints:
        checkpoints.save(1, params, (adam, *others), None, metadata)
    abstract = jax.eval_shape(lambda: {"params": params, "opt_state": (adam, *others)})
    with pytest.raises(
        UserError, match=rf"checkpoints/1 cannot be used: {name}/(0/nu/)?w has non-"
    ):
        CheckpointReader(tmp_path).restore(1, on_one_device(abstract))


# Orbax globs, TensorStore turns backslashes into slashes, both know names of cloud storage.
@pytest.mark.parametrize(
    "name", ["a [b]", "[!a]", "x*", "?", "b\\s", "gs:", "é ~#%20:'\"\n.", "not\udcffutf8"]
)
def test_any_path_holds_checkpoints(tmp_path, metadata, name):
    folders = [tmp_path / each for each in ("xy", "b/s", name)]
    for folder in folders:
        save(folder, metadata, [2.0, 1.0])
    for folder in folders:
        assert os.listdir(folder / "checkpoints") == ["2"]
        shapes = jax.eval_shape(lambda: {"params": state(2)[0]})
        restored = CheckpointReader(folder).restore(2, on_one_device(shapes))
        np.testing.assert_array_equal(restored["params"]["w"], state(2)[0]["w"])
    assert {path.name for path in tmp_path.iterdir()} == {"xy", "b", name}


def test_a_link_needs_a_path_that_orbax_takes_as_it_is(tmp_path, metadata, monkeypatch):
    (tmp_path / "t[1]").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t[1]"))
    with pytest.raises(UserError, match=r"TMPDIR is .*must not hold '\['"):
        save(tmp_path / "a [b]", metadata, [2.0])
    save(tmp_path / "ab", metadata, [2.0])


def test_finds_runs_and_refuses_other_folders(tmp_path, metadata, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = Path("runs")
    with pytest.raises(
        UserError, match=r"no run found in runs/, 4 folders deep; train one: shakegpt train"
    ):
        find_run()
    for name in ("old", "sweep/lr1", "sweep/lr1/checkpoints/tuned", "checkpoints/new"):
        save(runs / name, metadata, [2.0])
    (runs / "empty").mkdir()
    (runs / "begun" / "checkpoints").mkdir(parents=True)
    (runs / "file").touch()
    (runs / "sweep" / "loop").symlink_to(runs.resolve(), target_is_directory=True)
    (runs / "itself").symlink_to("itself")
    (runs / "link").symlink_to("old", target_is_directory=True)
    found = [runs / "checkpoints" / "new", runs / "old", runs / "sweep" / "lr1"]
    newest = found[0]
    assert find_run() == newest
    CheckpointReader(runs / "old").find("best")  # reading does not make it newer
    assert find_run() == newest
    assert find_run(str(runs / "old")) == runs / "old"
    for folder, message in (("empty", "is not a run folder"), ("none", "no such run folder")):
        with pytest.raises(UserError, match=message):
            find_run(str(runs / folder))
    with pytest.raises(UserError, match=r"is a folder of runs \(lr1\); give one"):
        find_run(str(runs / "sweep"))
    assert find_runs([]) == [newest]
    assert find_runs([str(runs)]) == found
    assert find_runs([str(runs / "old"), str(runs)]) == [found[1], found[0], found[2]]
    with pytest.raises(UserError, match="is not a run folder"):
        find_runs([str(runs / "empty")])


def test_runs_are_called_by_what_differs_in_their_paths():
    for paths, names in (
        (["runs/cpu", "runs/muon"], ["cpu", "muon"]),
        (["/a/x/runs/cpu", "/a/y/z/runs/cpu"], ["x", "y/z"]),
        (["a/cpu", "b/cpu", "b/muon"], ["a/cpu", "b/cpu", "b/muon"]),
        (["cpu", "cpu/cpu"], ["cpu", "cpu/cpu"]),
        (["runs/cpu"], ["cpu"]),
    ):
        assert list(short_names(paths).values()) == names
