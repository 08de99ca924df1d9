"""The compiled train step on meshes of 8 virtual devices."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from shakegpt_jax.errors import UserError
from shakegpt_jax.model import attention
from shakegpt_jax.model.gpt import GPT
from shakegpt_jax.profiling.gpu import Program, find_collectives
from shakegpt_jax.sharding import make_mesh
from shakegpt_jax.training.step import make_chunk
from shakegpt_jax.training.trainer import Trainer

VOCAB = 65
N_LAYER, N_EMBD, N_ROW, N_TIME = 2, 32, 16, 8


@pytest.fixture
def config(config):
    config.model.n_layer, config.model.n_embd, config.model.n_head = N_LAYER, N_EMBD, 2
    config.data.batch_size, config.model.block_size = N_ROW, N_TIME
    return config


def compile_step(config) -> tuple[jax.stages.Compiled, int]:
    """Compile a step; return it and the number of devices."""
    mesh = make_mesh(config.freeze())
    chunk = make_chunk(config, GPT(config.model, VOCAB), mesh)
    sharding = NamedSharding(mesh, PartitionSpec())
    ids = jax.ShapeDtypeStruct((1_000,), jnp.uint8, sharding=sharding)
    seed = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding)
    with jax.set_mesh(mesh):
        return chunk.run.lower(chunk.abstract_state, ids, seed, 1).compile(), mesh.size


def collectives(config, data: int, fsdp: int, tensor: int) -> dict[str, int]:
    """Return the bytes of each kind of collective of a step on a mesh."""
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = data, fsdp, tensor
    compiled, n_device = compile_step(config)
    sizes: dict[str, int] = collections.Counter()
    for each in find_collectives(Program(compiled.as_text()), n_device):
        sizes[each.kind] += each.n_byte
    return sizes


MATRICES = 4 * N_LAYER * 12 * N_EMBD**2  # bytes of the blocks' matrices
PARAMETERS = (
    MATRICES
    + 4 * N_LAYER * (3 + 1 + 4 + 1 + 4) * N_EMBD  # biases and LayerNorms
    + 4 * (2 * VOCAB + N_TIME + 2) * N_EMBD  # embeddings, head, last LayerNorm
)
ACTIVATION = 4 * N_ROW * N_TIME * N_EMBD


# On CPUs, XLA has no reduce-scatter: it reduces all of a gradient everywhere.
@pytest.mark.parametrize(
    ("mesh", "gathered", "reduced"),
    [
        # Gradients and the loss.
        ((8, 1, 1), 0, PARAMETERS + 4),
        # Each matrix is gathered once. The gradient's norm adds a number per matrix.
        ((1, 8, 1), MATRICES, PARAMETERS + 4),
        pytest.param((2, 4, 1), MATRICES, PARAMETERS + 4 + MATRICES // 4, marks=pytest.mark.slow),
        # The gradients of the heads are gathered. Twice per block and direction, activations are
        # added up; each device has half of the gradients of the matrices.
        (
            (4, 1, 2),
            MATRICES // 4,
            PARAMETERS + 4 - MATRICES // 2 + 4 * N_LAYER * ACTIVATION // 4,
        ),
    ],
)
def test_a_step_has_the_collectives_of_its_mesh(config, capfd, mesh, gathered, reduced):
    found = collectives(config, *mesh)
    assert found.keys() <= {"all-gather", "all-reduce"}
    assert found.get("all-gather", 0) == pytest.approx(gathered, rel=0.05)
    assert found["all-reduce"] == pytest.approx(reduced, rel=0.05)
    assert "rematerialization" not in capfd.readouterr().err


@pytest.mark.parametrize("mesh", [(2, 2, 2), pytest.param((1, 4, 2), marks=pytest.mark.slow)])
def test_three_axes_move_no_activations_but_sums(config, capfd, mesh):
    found = collectives(config, *mesh)
    assert found.keys() <= {"all-gather", "all-reduce"}
    assert found["all-gather"] < 1.1 * MATRICES
    assert "rematerialization" not in capfd.readouterr().err


def run(config, corpus, n_step: int = 6) -> tuple[list, list]:
    trainer = Trainer(config.freeze(), corpus, make_mesh(config))
    trainer.initialize()
    rows = list(trainer.run(0, n_step))
    losses = [row.train_loss for row in rows] + [row.gradient_norm for row in rows]
    return losses, [np.asarray(leaf) for leaf in jax.tree.leaves(trainer.state.params)]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}, marks=pytest.mark.slow),
        {"train.accumulate_steps": 2, "mesh.data": 4, "mesh.fsdp": 2},
        pytest.param({"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2}, marks=pytest.mark.slow),
        pytest.param({"train.accumulate_steps": 4}, marks=pytest.mark.slow),
        pytest.param({"model.remat": True}, marks=pytest.mark.slow),
        pytest.param({"model.remat": True, "mesh.fsdp": 8}, marks=pytest.mark.slow),
        {"model.compute_dtype": "bf16_bf16_f32", "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
        pytest.param(
            {
                "model.compute_dtype": "bf16_bf16_f32",
                "model.remat": True,
                "train.accumulate_steps": 2,
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_trains_as_one_device_does(config, corpus, changes, monkeypatch):
    monkeypatch.setattr(attention, "_MIN_BLOCK", 2)
    config.model.dropout = 0.0 if "train.accumulate_steps" in changes else 0.5
    config.model.compute_dtype = changes.get("model.compute_dtype", "float32")
    expected, params = run(config, corpus)
    other = config.replace({"mesh.data": 1} | changes)
    losses, other_params = run(other, corpus)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for ours, theirs in zip(other_params, params, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=2e-4)


@pytest.mark.slow
def test_parts_of_a_batch_have_different_dropout(config, corpus):
    config.model.dropout = 0.5
    whole, _ = run(config, corpus)
    parts, _ = run(config.replace({"train.accumulate_steps": 2}), corpus)
    assert not np.allclose(parts, whole, rtol=1e-4)


@pytest.mark.slow
def test_parts_of_a_batch_need_less_memory(config):
    config.data.batch_size = 128

    def temporary(config) -> int:
        return compile_step(config)[0].memory_analysis().temp_size_in_bytes

    assert temporary(config.replace({"train.accumulate_steps": 8})) < 0.2 * temporary(config)


def test_only_one_axis_takes_what_is_left(config):
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, -1, 2
    assert dict(make_mesh(config.freeze()).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    with pytest.raises(UserError, match=r"config\.mesh\.data and config\.mesh\.fsdp are -1"):
        config.replace({"mesh.data": -1})


def test_the_mesh_divides_heads_and_parts_of_a_batch(config):
    config.mesh.data, config.mesh.tensor = 1, 4
    with pytest.raises(UserError, match=r"must divide config\.model\.n_head \(2\)"):
        make_mesh(config)
    config.mesh.data, config.mesh.tensor, config.train.accumulate_steps = 8, 1, 4
    with pytest.raises(UserError, match=r"must be a multiple of 32, .*accumulate_steps"):
        make_mesh(config)
    config.train.accumulate_steps = 3
    with pytest.raises(UserError, match=r"divisor of data\.batch_size \(16\)"):
        config.freeze()
