"""The programs for an NVIDIA H100, compiled without one; nothing runs. Needs the extra `plan`."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shakegpt_jax.profiling.gpu import Program, memory_traffic

pytestmark = pytest.mark.slow

COMPILE = Path(__file__).with_name("compile_for_gpu.py")
INSTRUCTION = re.compile(  # name = shape opcode(operands), attributes
    r"^ +(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\w+\[[\d,]*\]\S*) ([\w-]+)\((.*)", re.MULTILINE
)
N_LAYER = {"base": 12, "record": 6, "speedrun": 6}


@pytest.fixture(scope="module", autouse=True)
def plugin() -> None:
    pytest.importorskip("jax_plugins.xla_cuda12", reason="needs the extra `plan`")


@pytest.fixture(scope="module", params=N_LAYER)
def compiled(request, tmp_path_factory) -> tuple[str, dict[str, str], dict[str, int]]:
    """Return the config, and the HLO and the peak memory in bytes of each program."""
    folder = tmp_path_factory.mktemp(request.param)
    # Another process: the plugin loads as JAX starts.
    command = [sys.executable, COMPILE, request.param, folder]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    peaks = json.loads(process.stdout.splitlines()[-1])
    return request.param, {name: (folder / f"{name}.hlo").read_text() for name in peaks}, peaks


def matmuls(hlo: str) -> list[tuple[str, str, list[str]]]:
    """Return target, op name and the dtypes of two operands of each matmul and attention."""
    types = {name: shape.lstrip("(").split("[")[0] for name, shape, *_ in INSTRUCTION.findall(hlo)}
    found = []
    for _, _, opcode, rest in INSTRUCTION.findall(hlo):
        target = re.search(r'custom_call_target="(__cublas|__cudnn)[^"]*"', rest)
        if opcode == "dot" or (opcode == "custom-call" and target):
            operands = re.findall(r"%([\w.-]+)", rest.split(")")[0])[:2]
            name = re.search(r'op_name="([^"]*)"', rest)
            kind = "dot" if target is None else target[0]
            found.append((kind, name[1] if name else "", [types[each] for each in operands]))
    return found


def test_matmuls_of_the_blocks_have_bfloat16_operands(compiled):
    name, programs, _ = compiled
    for program, per_layer in {"train": 12, "evaluate": 4, "draft": 4}.items():
        inside = [dtypes for _, op, dtypes in matmuls(programs[program]) if "block_" in op]
        assert len(inside) >= per_layer * N_LAYER[name]
        assert all(dtypes == ["bf16", "bf16"] for dtypes in inside)


def test_cudnn_computes_the_attention_of_training_and_evaluation(compiled):
    name, programs, _ = compiled
    for program, count in {"train": 2, "evaluate": 1, "decode": 0, "draft": 0}.items():
        kinds = [kind for kind, _, _ in matmuls(programs[program])]
        assert sum("fmha" in kind for kind in kinds) == count * N_LAYER[name]


def test_parameters_and_caches_are_not_copied(compiled):
    name, programs, _ = compiled
    n_character = {"base": 128 * 128, "record": 64 * 256, "speedrun": 16 * 256}[name]  # of a batch
    for hlo in programs.values():
        for _, shape, opcode, _ in INSTRUCTION.findall(hlo):
            if opcode in ("copy", "copy-start"):
                found = re.findall(r"\d+", shape.partition("[")[2].partition("]")[0])
                sizes = [int(size) for size in found]
                if sizes[:1] != [n_character]:  # activations: cuBLAS adds in place
                    assert math.prod(sizes) < 1_000, (shape, opcode)  # characters, keys, metrics


def test_training_fits_a_small_part_of_the_memory(compiled):
    _, _, peaks = compiled
    assert 0 < peaks["train"] < 16e9


# Kernels and gigabytes, of a step and of a character, a little above what they were.
MOST = {"base": ((750, 36), (170, 0.2)), "record": ((720, 10.2), (90, 0.032))}


def test_kernels_are_few_and_read_and_write_little(compiled):
    name, programs, _ = compiled
    for (program, n_pass), most in zip(
        (("train", 50), ("decode", 16)), MOST.get(name, ()), strict=False
    ):
        read = Program(programs[program])
        kernels = sum(n for each, n in read.executed() if each.opcode in ("fusion", "custom-call"))
        assert kernels / n_pass <= most[0]
        assert memory_traffic(read) / n_pass / 1e9 <= most[1]


MATRICES = 12 * 12 * 768**2  # weights of base.py that fsdp shards
REST = 12 * 2 * 768 + (2 * 65 + 128 + 1) * 768


def plan(*arguments: str) -> dict:
    """Return what the command plans for base.py on H100s."""
    command = [sys.executable, "-m", "shakegpt_jax.plan", "--config=configs/base.py", "--json"]
    process = subprocess.run(
        [*command, *arguments],
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
        text=True,
    )
    # XLA reports activations that it gathers to shard them in another way.
    assert "Involuntary full rematerialization" not in process.stderr
    report = json.loads(process.stdout)
    assert report["compiled_for"] == f"{report['devices']} x NVIDIA H100 80GB HBM3"
    return report


@pytest.mark.parametrize("nodes", [1, 8])
def test_collectives_are_those_of_the_textbook(nodes):
    report = plan("--config.mesh.fsdp=8", f"--nodes={nodes}", "--gpus_per_node=8")
    sent = {kind: each["bytes_sent"] for kind, each in report["collectives_per_step"].items()}
    assert sent.keys() == {"all-gather", "reduce-scatter", "all-reduce"}
    # In bfloat16 weights are gathered once, and gradients scattered once.
    assert sent["all-gather"] == sent["reduce-scatter"] == 2 * MATRICES * 7 / 8
    # Small gradients, in float32 or bfloat16, are reduced everywhere; the shards among the nodes.
    among_nodes = 2 * (nodes - 1) / nodes * 2 * MATRICES / 8
    n_device = 8 * nodes
    everywhere = 2 * (n_device - 1) / n_device * 4 * REST
    assert among_nodes < sent["all-reduce"] < among_nodes + 1.1 * everywhere
    assert report["collective_bytes_per_step"] == pytest.approx(
        {1: 299e6, 8: 337e6}[nodes], rel=5e-3
    )


def test_recomputing_the_blocks_takes_less_memory_and_more_flops():
    stored, recomputed = plan(), plan("--config.model.remat=True")
    assert recomputed["temporary_bytes_per_device"] < 0.4 * stored["temporary_bytes_per_device"]
    # Beside three parts, forward and backward: the blocks but for their last product, 8 of 12.
    ratio = recomputed["flops_per_step"] / stored["flops_per_step"]
    assert ratio == pytest.approx((3 + 8 / 12) / 3, rel=0.01)
