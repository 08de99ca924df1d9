"""Compile the programs of a config for one NVIDIA H100, without having one.

    python tests/compile_for_gpu.py CONFIG FOLDER

writes the optimized HLO of each program to FOLDER and prints, as JSON, its peak memory in bytes.
Needs the extra `plan`.
"""

import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"  # there is nothing to time

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from shakegpt_jax.configs import load_config
from shakegpt_jax.inference.decoding import decode, decode_drafted, prefill, start_drafting
from shakegpt_jax.inference.ngram import NGram
from shakegpt_jax.inference.sampling import Sampling
from shakegpt_jax.inference.scoring import _window_losses
from shakegpt_jax.model import gpt
from shakegpt_jax.model.linear import cast_blocks
from shakegpt_jax.profiling.gpu import load_gpu
from shakegpt_jax.sharding import make_mesh
from shakegpt_jax.training.step import make_chunk

VOCAB = 65
# Stands for the choice that autotuning would make.
OPTIONS = {"xla_gpu_enable_triton_gemm": False}


def lower_all(name: str) -> dict[str, jax.stages.Lowered]:
    """Lower the train chunk, evaluation and decoding of a config."""
    # What needs a device: whether cuDNN is there, and whether it accepts these heads.
    cudnn.check_compute_capability = lambda _: True
    cudnn.is_cuda_compute_capability_equal = lambda _: False
    cudnn.check_cudnn_version = lambda: 90700
    gpt.cudnn_attends = lambda _: True
    config = load_config(str(Path(__file__).parents[1] / "configs" / f"{name}.py"))
    config.model.compute_dtype = "bfloat16"
    config.freeze()
    topology = topologies.get_topology_desc(
        platform="cuda", topology="1x1x1", target_config=load_gpu("h100").target
    )
    mesh = make_mesh(config, topology.devices)
    sharding = NamedSharding(mesh, PartitionSpec())

    def put(tree):
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
        )

    model = gpt.GPT(config.model, VOCAB)
    n_time, n = config.model.block_size, config.train.steps_per_dispatch
    with jax.set_mesh(mesh):
        chunk = make_chunk(config, model, mesh)
        ids = put(jax.ShapeDtypeStruct((1_000_000,), jnp.uint8))
        seed = put(jax.ShapeDtypeStruct((), jnp.int32))
        programs = {"train": chunk.run.lower(chunk.abstract_state, ids, seed, n)}
        params = chunk.abstract_state.params
        windows = put(jax.ShapeDtypeStruct((16_384 // n_time, n_time + 1), jnp.uint8))
        programs["evaluate"] = _window_losses.lower(model, params, windows)
        params = put(jax.eval_shape(lambda p: cast_blocks(p, config.model), params))
        sampling = Sampling(0.8)
        arguments = put(
            (
                jax.ShapeDtypeStruct((1, 16), jnp.int32),
                jax.ShapeDtypeStruct((1,), jnp.int32),
                jax.ShapeDtypeStruct((1,), jnp.uint32),
                jax.ShapeDtypeStruct((), jnp.int32),
            )
        )
        state, *_ = jax.eval_shape(
            lambda *a: prefill(model, *a, sampling, n_spare=8), params, *arguments
        )
        one = jax.ShapeDtypeStruct((1,), jnp.int32)
        drafting = put(jax.eval_shape(start_drafting, state, one, one))
        programs["decode"] = decode.lower(model, params, put(state), sampling, 16)
        table = jax.ShapeDtypeStruct((61_213, VOCAB), jnp.float16)
        ngram = put(NGram(table, jax.ShapeDtypeStruct(table.shape, jnp.int32)))
        programs["draft"] = decode_drafted.lower(model, params, ngram, drafting, sampling, 8, 4)
    return programs


if __name__ == "__main__":
    peaks = {}
    for program, lowered in lower_all(sys.argv[1]).items():
        compiled = lowered.compile(compiler_options=OPTIONS)
        Path(sys.argv[2], f"{program}.hlo").write_text(compiled.as_text())
        peaks[program] = compiled.memory_analysis().peak_memory_in_bytes
    print(json.dumps(peaks))
