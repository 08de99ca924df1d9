import re

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
    with CheckpointWriter(workdir, keep, pytest.fail) as checkpoints:
        for step, loss in enumerate(losses, start=1):
            checkpoints.save(step, *state(step), {"loss": loss}, metadata)


def test_restores_what_was_saved(tmp_path, metadata):
    save(tmp_path, metadata, [2.0])
    params, opt_state = state(1)
    saved = {"params": params, "opt_state": opt_state}
    shapes = jax.eval_shape(lambda: saved)
    checkpoints = CheckpointReader(tmp_path)
    restored = checkpoints.restore(1, on_one_device(shapes))
    assert checkpoints.run_metadata(1) == metadata
    for saved, loaded in zip(
        jax.tree.leaves({"params": params, "opt_state": opt_state}),
        jax.tree.leaves(restored),
        strict=True,
    ):
        assert (saved.dtype, saved.shape) == (loaded.dtype, loaded.shape)
        np.testing.assert_array_equal(saved, loaded)
    assert jax.tree.structure(restored) == jax.tree.structure(
        {"params": params, "opt_state": opt_state}
    )


def test_restores_parameters_alone(tmp_path, metadata):
    save(tmp_path, metadata, [2.0])
    shapes = jax.eval_shape(lambda: {"params": state(1)[0]})
    assert set(CheckpointReader(tmp_path).restore(1, on_one_device(shapes))) == {"params"}


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
    with CheckpointWriter(tmp_path, 1, pytest.fail) as checkpoints:
        checkpoints.save(1, *state(1), None, metadata)
    with CheckpointWriter(tmp_path, 1, pytest.fail) as checkpoints:
        assert checkpoints.find("best") == checkpoints.find("latest") == 1
        assert checkpoints.metrics(1) == {}
        checkpoints.save(2, *state(2), {"loss": 2.0}, metadata)
        checkpoints.save(3, *state(3), None, metadata)
    with CheckpointWriter(tmp_path, 1, pytest.fail) as checkpoints:
        assert (checkpoints.find("best"), checkpoints.find("latest")) == (2, 3)
        with pytest.raises(UserError, match=re.escape("there are: [2, 3]")):
            checkpoints.find(1)


def test_reading_ignores_unfinished_saves_and_writing_removes_them(tmp_path, metadata):
    save(tmp_path, metadata, [2.0])
    under_way = tmp_path / "checkpoints" / "tmp" / "2"
    under_way.mkdir(parents=True)
    assert CheckpointReader(tmp_path).find("latest") == 1
    assert under_way.exists()
    with CheckpointWriter(tmp_path, 1, pytest.fail):
        assert not under_way.exists()
    assert not under_way.parent.exists()


def changed_config(section: str, name: str, value: object) -> dict:
    config = Config().to_dict()
    config[section][name] = value
    return {"config": config}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "it has format version 2, and this version reads up to 1; upgrade"),
        ({"format_version": 0}, "its format_version is 0, not 1"),
        ({"format_version": "1"}, "its format_version is '1', not 1"),
        ({"config": None}, "the config is None"),
        ({"config": {"model": 3}}, "config.model is 3"),
        ({"config": {"_frozen": {}}}, "unknown config section _frozen"),
        ({"config": {}}, "the config lacks data, mesh, model, optimizer, train"),
        ({"config": {"model": {}}}, "config.model lacks block_size"),
        (changed_config("model", "__class__", 1), "no config field __class__"),
        (changed_config("model", "n_layer", 10**9), "n_layer is 1000000000; it must be a whole"),
        (changed_config("model", "n_embd", 10**400), "n_embd is 1000"),
        (changed_config("model", "n_layer", True), "n_layer is True"),
        (changed_config("optimizer", "eps", 10**400), "eps is 1000"),
        ({"format_version": True}, "its format_version is True, not 1"),
        ({"vocabulary": ""}, "vocabulary is not a text, or empty"),
        ({"vocabulary": "ba"}, "vocabulary is not sorted, or has repetitions"),
        ({"vocabulary": "aa"}, "vocabulary is not sorted, or has repetitions"),
        ({"vocabulary": ["a"]}, "vocabulary is not a text"),
        ({"text_sha256": "../../etc"}, "text_sha256 is not a SHA-256"),
        ({"text_sha256": None}, "text_sha256 is not a SHA-256"),
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


def test_finds_runs_and_refuses_other_folders(tmp_path, metadata):
    runs = tmp_path / "runs"
    with pytest.raises(UserError, match=r"no run found under .*; train one: python run_train.py"):
        find_run(runs=str(runs))
    save(runs / "old", metadata, [2.0])
    save(runs / "new", metadata, [2.0])
    (runs / "empty").mkdir()
    (runs / "begun" / "checkpoints").mkdir(parents=True)
    (runs / "file").touch()
    assert find_run(runs=str(runs)) == runs / "new"
    CheckpointReader(runs / "old").find("best")  # reading does not make it newer
    assert find_run(runs=str(runs)) == runs / "new"
    assert find_run(str(runs / "old")) == runs / "old"
    with pytest.raises(UserError, match="is not a run folder"):
        find_run(str(runs / "empty"))
    with pytest.raises(UserError, match="no such run folder"):
        find_run(str(runs / "none"))
    assert find_runs([], str(runs)) == [runs / "new"]
    assert find_runs([str(runs)]) == [runs / "new", runs / "old"]
    assert find_runs([str(runs / "old"), str(runs)])[0] == runs / "old"
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
