"""Plans a run on devices that are not there: memory, FLOPs, collectives, time."""

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import load_corpus
from shakegpt_jax.errors import UserError
from shakegpt_jax.model.gpt import GPT
from shakegpt_jax.profiling.gpu import Gpu, Program, find_collectives, memory_traffic
from shakegpt_jax.sharding import make_mesh
from shakegpt_jax.training.step import Chunk, make_chunk, peak_bytes

# There is no GPU to time kernels on. Without Triton, matmuls are calls of cuBLAS, which autotuning
# mostly chooses.
_GPU_OPTIONS: dict[str, str | bool] = {
    "xla_gpu_autotune_level": "0",
    "xla_gpu_enable_triton_gemm": False,
}

MEMORY_FRACTION = 0.75  # that JAX allocates, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise

_LARGEST_BATCH = 1_000_000  # that a config accepts
_MOST_TRIALS = 3  # to find the largest one


def planned_devices(gpu: Gpu, nodes: int, gpus_per_node: int) -> list[jax.Device]:
    """Return devices to compile for: GPUs where the CUDA plugin is installed, else virtual CPUs.

    Call it before JAX makes an array.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", nodes * gpus_per_node)
    # The parent first: otherwise find_spec raises an error if it is missing.
    names = ("jax_plugins", "jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
    if not find_spec(names[0]) or not any(map(find_spec, names[1:])):
        return jax.devices()
    return topologies.get_topology_desc(
        platform="cuda", topology=f"1x{nodes}x{gpus_per_node}", target_config=gpu.target
    ).devices


class StepCompiler:
    """Compiles train steps of a config for devices, which need not be there."""

    def __init__(self, config: Config, devices: list[jax.Device]):
        if config.model.compute_dtype == "auto":
            config = config.replace({"model.compute_dtype": "bfloat16"})
        self.config = config
        self.mesh = make_mesh(config, devices)
        if self.mesh.size < len(devices):
            raise UserError(
                f"config.mesh uses {self.mesh.size} of {len(devices)} devices; it must use all: "
                "try --config.mesh.data=-1"
            )
        corpus = load_corpus(config.data.path, config.model.block_size)
        self._n_id = len(corpus.train_ids)
        self._model = GPT(config.model, corpus.tokenizer.vocab_size)
        self._on_gpu = devices[0].platform != "cpu"

    def compile(self, batch_size: int) -> tuple[jax.stages.Compiled, Chunk]:
        """Compile one step."""
        config = self.config.replace({"data.batch_size": batch_size})
        lowered, chunk = self._lower(config, self.mesh)
        return lowered.compile(compiler_options=_GPU_OPTIONS if self._on_gpu else None), chunk

    def flops(self) -> float:
        """Count the FLOPs of a step on all devices together, recomputation included."""
        # Not compiled, and on one CPU: XLA counts a loop's body once, and sees no FLOPs in the
        # calls that a GPU's program consists of.
        whole = {"mesh.data": 1, "mesh.fsdp": 1, "mesh.tensor": 1, "train.accumulate_steps": 1}
        config = self.config.replace(whole)
        lowered, _ = self._lower(config, make_mesh(config, jax.devices("cpu")[:1]))
        costs: Any = lowered.cost_analysis()
        return costs["flops"]

    def _lower(self, config: Config, mesh: Mesh) -> tuple[jax.stages.Lowered, Chunk]:
        replicated = NamedSharding(mesh, PartitionSpec())
        ids = jax.ShapeDtypeStruct((self._n_id,), jnp.uint8, sharding=replicated)
        seed = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
        with jax.set_mesh(mesh):
            chunk = make_chunk(config, self._model, mesh)
            return chunk.run.lower(chunk.abstract_state, ids, seed, 1), chunk


def plan(
    config: Config, gpu: Gpu, devices: list[jax.Device], gpus_per_node: int, network: float
) -> dict[str, Any]:
    """Compile a train step for `planned_devices` and read from it what a run needs.

    `network` is in bytes per second from a GPU to other nodes. The figures are bytes of one device,
    and FLOPs of all together.
    """
    compiler = StepCompiler(config, devices)
    batch_size, mesh = config.data.batch_size, compiler.mesh
    compiled, chunk = compiler.compile(batch_size)
    stats: Any = compiled.memory_analysis()
    peak, arguments = peak_bytes(compiled), stats.argument_size_in_bytes
    state = chunk.abstract_state
    n_parameter = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    program = Program(compiled.as_text() or "")
    found = find_collectives(program, mesh.size)
    flops, traffic = compiler.flops(), memory_traffic(program)
    seconds = {
        "compute": flops / mesh.size / gpu.flops,
        "memory": traffic / gpu.memory_bandwidth,
        "network": sum((each.seconds(gpus_per_node, gpu.nvlink, network) for each in found), 0.0),
    }
    parts = config.train.accumulate_steps * mesh.shape["data"] * mesh.shape["fsdp"]
    # The gradients, in bfloat16, are whole until they are added up.
    tried = {0: arguments + 2 * n_parameter, batch_size: peak}
    memory = int(gpu.memory * MEMORY_FRACTION)
    largest = largest_batch(lambda n: peak_bytes(compiler.compile(n)[0]), tried, parts, memory)
    sent: dict[str, list[float]] = {}
    for each in found:
        sent.setdefault(each.kind, []).append(each.bytes_sent)
    kind = devices[0].device_kind if devices[0].platform != "cpu" else "virtual CPU"
    return {
        "gpu": gpu.kind,
        "devices": mesh.size,
        "compiled_for": f"{mesh.size} x {kind}",
        "mesh": dict(mesh.shape),
        "batch_size": batch_size,
        "parameters": n_parameter,
        "peak_bytes_per_device": peak,
        "argument_bytes_per_device": arguments,
        "parameter_bytes_per_device": _bytes_per_device(state.params),
        "optimizer_bytes_per_device": _bytes_per_device(state.opt_state),
        "temporary_bytes_per_device": peak - arguments,
        "flops_per_step": flops,
        "memory_traffic_per_step": traffic,
        "collectives_per_step": {
            kind: {"count": len(each), "bytes_sent": sum(each)} for kind, each in sent.items()
        },
        "collective_bytes_per_step": sum(each.bytes_sent for each in found),
        "roofline_seconds": seconds,
        "roofline_seconds_per_step": max(seconds.values()),
        "bound": max(seconds, key=lambda name: seconds[name]),
        "largest_batch_size": largest,
    }


def largest_batch(
    peak: Callable[[int], int], tried: dict[int, int], multiple: int, memory: int
) -> int:
    """Return a batch that fits and, if possible, takes 95% of the memory; 0 if none fits.

    `peak`, slow and roughly linear, gives the bytes of a batch; `tried` has those of 0 and another.
    """
    tried = dict(tried)
    for _ in range(_MOST_TRIALS):
        largest = max((size for size, used in tried.items() if used <= memory), default=0)
        too_large = min((size for size, used in tried.items() if used > memory), default=math.inf)
        if tried[largest] > 0.95 * memory:
            break
        (last_size, last_used), (size, used) = list(tried.items())[-2:]
        per_row = max((used - last_used) / (size - last_size), 1.0)
        trial = math.floor((size + (0.98 * memory - used) / per_row) / multiple) * multiple
        most = min(too_large - 1, _LARGEST_BATCH) // multiple * multiple
        trial = int(min(max(trial, largest + multiple), most))
        if trial == largest:
            break
        tried[trial] = peak(trial)
    return max((size for size, used in tried.items() if used <= memory), default=0)


def _bytes_per_device(tree: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
