import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shakegpt_jax.checkpoint import Checkpoints, RunInfo, find_run
from shakegpt_jax.errors import UserError
from shakegpt_jax.sharding import on_one_device


@pytest.fixture
def info(config) -> RunInfo:
    return RunInfo(config.freeze(), "\n !'ab", "digest")


def state(step: int) -> tuple[dict, dict]:
    key = jax.random.key(step)
    params = {"w": jax.random.normal(key, (4, 3)), "b": jnp.float32(step)}
    rest = {"step": jnp.int32(step), "opt_state": (params, jnp.arange(3, dtype=jnp.bfloat16))}
    return params, rest


def save(workdir, info: RunInfo, losses: list[float], keep: int = 1) -> None:
    with Checkpoints(workdir, keep_latest=keep) as checkpoints:
        for step, loss in enumerate(losses, start=1):
            checkpoints.save(step, *state(step), {"loss": loss}, info)


def test_restored_is_what_was_saved(tmp_path, info):
    save(tmp_path, info, [2.0])
    params, rest = state(1)
    shapes = jax.eval_shape(lambda: {"params": params, "rest": rest})
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(1, on_one_device(shapes))
        assert checkpoints.run_info(1) == info
    for saved, loaded in zip(
        jax.tree.leaves({"params": params, "rest": rest}), jax.tree.leaves(restored), strict=True
    ):
        assert (saved.dtype, saved.shape) == (loaded.dtype, loaded.shape)
        np.testing.assert_array_equal(saved, loaded)
    assert jax.tree.structure(restored) == jax.tree.structure({"params": params, "rest": rest})


def test_parameters_can_be_restored_alone(tmp_path, info):
    save(tmp_path, info, [2.0])
    shapes = jax.eval_shape(lambda: {"params": state(1)[0]})
    with Checkpoints(tmp_path) as checkpoints:
        assert set(checkpoints.restore(1, on_one_device(shapes))) == {"params"}


@pytest.mark.parametrize(
    ("losses", "keep", "kept"),
    [
        ([3.0, 2.0, 1.0], 1, [3]),
        ([1.0, 2.0, 3.0], 1, [1, 3]),  # overfitting: the best and the newest
        ([3.0, 1.0, 2.0, 4.0], 2, [2, 3, 4]),
    ],
)
def test_latest_and_best_are_kept(tmp_path, info, losses, keep, kept):
    save(tmp_path, info, losses, keep)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.find("latest") == checkpoints.latest_step == len(losses)
        assert checkpoints.find("best") == int(np.argmin(losses)) + 1
        assert checkpoints.find(kept[0]) == kept[0]
        with pytest.raises(UserError, match="no checkpoint of step 9; there are: "):
            checkpoints.find(9)


def test_a_checkpoint_without_figures_is_the_latest_but_not_the_best(tmp_path, info):
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        checkpoints.save(1, *state(1), None, info)
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        assert checkpoints.find("best") == checkpoints.find("latest") == 1
        assert checkpoints.metrics(1) == {}
        checkpoints.save(2, *state(2), {"loss": 2.0}, info)
        checkpoints.save(3, *state(3), None, info)
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        assert (checkpoints.find("best"), checkpoints.find("latest")) == (2, 3)
        with pytest.raises(UserError, match=re.escape("there are: [2, 3]")):
            checkpoints.find(1)


def test_reading_leaves_a_save_under_way_alone_and_writing_clears_what_is_left(tmp_path, info):
    save(tmp_path, info, [2.0])
    under_way = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    under_way.mkdir()
    with Checkpoints(tmp_path):
        pass
    assert under_way.exists()
    with Checkpoints(tmp_path, keep_latest=1):
        pass
    assert not under_way.exists()


def test_an_empty_folder_with_a_number_is_no_checkpoint(tmp_path, info):
    save(tmp_path, info, [2.0])
    (tmp_path / "checkpoints" / "5").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.find("latest") == checkpoints.find("best") == 1
        with pytest.raises(UserError, match="no checkpoint of step 5"):
            checkpoints.find(5)
    empty = tmp_path / "other"
    (empty / "checkpoints" / "5").mkdir(parents=True)
    with (
        Checkpoints(empty) as checkpoints,
        pytest.raises(UserError, match="holds no finished checkpoint"),
    ):
        checkpoints.find("latest")


def test_another_format_is_refused(tmp_path, info):
    with pytest.raises(UserError, match="checkpoint format 2; this version reads 1"):
        RunInfo.from_json(info.to_json() | {"format_version": 2})


def test_runs_are_found_and_other_folders_refused(tmp_path, info):
    runs = tmp_path / "runs"
    with pytest.raises(UserError, match=r"no run found under .*; train one: python run_train.py"):
        find_run(runs=str(runs))
    save(runs / "old", info, [2.0])
    save(runs / "new", info, [2.0])
    (runs / "empty").mkdir()
    (runs / "begun" / "checkpoints").mkdir(parents=True)
    (runs / "file").touch()
    assert find_run(runs=str(runs)) == runs / "new"
    with Checkpoints(runs / "old"):  # opening it to read does not make it newer
        assert find_run(runs=str(runs)) == runs / "new"
    assert find_run(str(runs / "old")) == runs / "old"
    with pytest.raises(UserError, match="is not a run folder"):
        find_run(str(runs / "empty"))
    with pytest.raises(UserError, match="no such run folder"):
        find_run(str(runs / "none"))
