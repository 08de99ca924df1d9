"""Planning a run on GPUs that are not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from fakes import one_line

from shakegpt_jax.profiling.gpu import (
    Collective,
    Program,
    array_bytes,
    find_collectives,
    load_gpu,
    memory_traffic,
)
from shakegpt_jax.profiling.plan import StepCompiler, largest_batch, plan

HLO = """HloModule example, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%fused (param_0: f32[4]) -> f32[4] {
  %param_0 = f32[4]{0} parameter(0)
  ROOT %negate.1 = f32[4]{0} negate(%param_0)
}

%body (carried: (s32[], f32[4])) -> (s32[], f32[4]) {
  %carried = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%carried), index=0
  %x = f32[4]{0} get-tuple-element(%carried), index=1
  %sum = f32[4]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
  %gemm = (f32[4]{0}, s8[1024]{0}) custom-call(%sum, /*index=1*/%x), custom_call_target="gemm"
  %y = f32[4]{0} get-tuple-element(%gemm), index=0
  ROOT %both = (s32[], f32[4]{0}) tuple(%i, %y)
}

ENTRY %main (x.1: f32[4]) -> f32[4] {
  %x.1 = f32[4]{0} parameter(0)
  %zero = s32[] constant(0)
  %fusion = f32[4]{0} fusion(%x.1), kind=kLoop, calls=%fused
  %first = (s32[], f32[4]{0}) tuple(%zero, %fusion)
  %loop = (s32[], f32[4]{0}) while(%first), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %last = f32[4]{0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_instructions_of_a_loop_count_as_often_as_they_run():
    program = Program(HLO)
    times = {each.name: times for each, times in program.executed()}
    assert (times["fusion"], times["sum"], times["gemm"]) == (1, 3, 3)
    assert "negate.1" not in times  # a fusion is one kernel
    assert find_collectives(program, 2) == [Collective("all-reduce", 16, (0, 1))] * 3
    # Fusion: 16 read, 16 written. Three times: all-reduce, the same; gemm, 32 read, 16 written.
    assert memory_traffic(program) == 32 + 3 * (32 + 48)
    assert array_bytes("(bf16[2,3]{1,0}, /*index=1*/pred[5], s32[], f8e4m3fn[7])") == [12, 5, 4, 7]


def test_collectives_of_all_notations_and_bytes_sent_in_a_ring():
    def find(line: str) -> Collective:
        (collective,) = find_collectives(Program("ENTRY %main () -> f32[] {\n" + line), 8)
        return collective

    line = "  %a = (f32[10], pred[]) all-reduce(%b), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply"
    assert find(line) == Collective("all-reduce", 41, (0, 1, 2, 3))
    assert Collective("all-reduce", 40, (0, 1, 2, 3)).bytes_sent == 60
    assert Collective("reduce-scatter", 10, (0, 1, 2, 3)).bytes_sent == 30
    line = "  %a = ((bf16[2,4], u8[1]), (bf16[8,4], u8[4])) all-gather-start(%b), "
    for groups, devices in {
        "replica_groups=[2,4]<=[8], dimensions={0}": (0, 1, 2, 3),
        "replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}": (0, 2, 4, 6),
        "replica_groups=mesh['x'=2,'y'=2,'z'=2] {'x','z'}, dimensions={0}": (0, 1, 4, 5),
        "replica_groups=mesh['x'=1,'y'=2,'z'=4], device_ids=([4,2]T(1,0)) {'z'}": (0, 2, 4, 6),
        "replica_groups=mesh['x'=1,'y'=2,'z'=4], device_ids=([4,2]T(1,0)) {'y'}": (0, 1),
        "replica_groups={}": tuple(range(8)),
    }.items():
        gather = find(line + groups)
        assert gather == Collective("all-gather", 68, devices)
        assert gather.bytes_sent == 68 * (len(devices) - 1) / len(devices)


def test_a_ring_between_nodes_uses_the_adapters_of_all_its_gpus():
    def seconds(*group: int) -> float:  # nodes of 4
        return Collective("all-gather", 800, group).seconds(4, 100.0, 10.0)

    assert seconds(0, 1, 2, 3) == 600 / 100  # within a node
    assert seconds(0, 4) == 400 / 10
    assert seconds(0, 1, 4, 5) == 600 / 20
    assert seconds(*range(8)) == 700 / 40
    assert seconds(5) == 0


@pytest.mark.parametrize("name", ["a100", "h100", "h200"])
def test_gpus_have_the_figures_of_their_data_sheets(name):
    gpu = load_gpu(name)
    terabytes, gigabytes = {"a100": (2.04, 80), "h100": (3.35, 80), "h200": (4.8, 141)}[name]
    assert name.upper() in gpu.kind
    assert gpu.memory_bandwidth == pytest.approx(terabytes * 1e12, rel=0.01)
    assert gigabytes * 1e9 < gpu.memory < gigabytes * 2**30


def test_largest_batch_fits_and_fills_the_memory():
    n_trial = 0

    def peak(size: int) -> int:
        nonlocal n_trial
        n_trial += 1
        assert size % 8 == 0
        return max(3_000 + 10 * size, 5_000) + size**2 // 10_000  # not quite linear

    def largest(first: int, multiple: int, memory: int, peak=peak) -> int:
        return largest_batch(peak, {0: 1_000, first: peak(first)}, multiple, memory)

    for first in (80, 5_000, 80_000):
        n_trial = 0
        found = largest(first, 8, 100_000)
        assert n_trial <= 4
        assert 95_000 < peak(found) <= 100_000
    assert largest(2_000, 2_000, 30_000) == 2_000  # 23,400 bytes; the next multiple takes 44,600
    assert largest(80, 8, 4_900) == 0
    assert largest(80, 8, 900) == 0
    assert largest(72, 24, 10**12, lambda size: 1_000 + size) == 999_984


@pytest.fixture
def config(config, text_file):
    config.model.n_embd, config.model.block_size = 64, 32
    config.data.path = str(text_file)
    config.data.batch_size = 16
    config.mesh.data, config.mesh.fsdp = 2, 4
    return config


def test_figures_of_a_plan(config, corpus):
    vocab_size, n_layer, n_embd, n_time = corpus.tokenizer.vocab_size, 1, 64, 32
    gpu = load_gpu("h100")._replace(memory=1_000)
    report = plan(config.freeze(), gpu, jax.devices(), 4, 50e9)
    assert (report["devices"], report["compiled_for"]) == (8, "8 x virtual CPU")
    matrices = n_layer * 12 * n_embd**2
    others = n_layer * 13 * n_embd + (2 * vocab_size + n_time + 2) * n_embd
    assert report["parameters"] == matrices + others
    assert report["parameter_bytes_per_device"] == pytest.approx(
        4 * (matrices / 4 + others), rel=1e-3
    )
    # Two moments per parameter and a few counters.
    assert report["optimizer_bytes_per_device"] == pytest.approx(
        2 * report["parameter_bytes_per_device"], rel=1e-3
    )
    text = len(corpus.train_ids)
    state = report["parameter_bytes_per_device"] + report["optimizer_bytes_per_device"]
    assert report["argument_bytes_per_device"] == pytest.approx(state + text, abs=100)
    assert (
        report["argument_bytes_per_device"] + report["temporary_bytes_per_device"]
        == report["peak_bytes_per_device"]
    )
    # Six per weight and character, and attention; the rest is not matmuls.
    matmuls = 16 * n_time * (6 * (matrices + vocab_size * n_embd) + 12 * n_layer * n_embd * n_time)
    assert matmuls < report["flops_per_step"] < 1.15 * matmuls
    seconds = report["roofline_seconds"]
    assert seconds["compute"] == report["flops_per_step"] / 8 / 989e12
    assert seconds["memory"] == report["memory_traffic_per_step"] / 3.35232e12
    # Twice the whole gradient at least, from node to node.
    assert seconds["network"] > 2 * 0.5 * 4 * report["parameters"] / 4 / 50e9
    assert report["roofline_seconds_per_step"] == max(seconds.values()) == seconds[report["bound"]]
    assert report["largest_batch_size"] == 0  # in so little memory


@pytest.mark.slow
def test_parts_of_a_batch_repeat_the_collectives_and_not_the_flops(config):
    config.data.batch_size = 32
    config.mesh.data, config.mesh.fsdp = 8, 1
    flops = StepCompiler(config.copy().freeze(), jax.devices()).flops()
    config.train.accumulate_steps = 4
    compiler = StepCompiler(config.freeze(), jax.devices())
    assert compiler.flops() == flops
    compiled, chunk = compiler.compile(32)
    sent = sum(each.bytes_sent for each in find_collectives(Program(compiled.as_text()), 8))
    n_byte = sum(4 * leaf.size for leaf in jax.tree.leaves(chunk.abstract_state.params))
    assert sent == pytest.approx(4 * 2 * 7 / 8 * n_byte, rel=0.01)


MEASURE = """
import json, sys, jax, numpy as np
from shakegpt_jax.config import Config
from shakegpt_jax.profiling.plan import StepCompiler
from shakegpt_jax.training.step import peak_bytes
from shakegpt_jax.training.trainer import Trainer
from shakegpt_jax.data.corpus import load_corpus

def resident(name):
    (line,) = (l for l in open("/proc/self/status") if l.startswith(name))
    return int(line.split()[1]) * 1024

config = Config.from_dict(json.loads(sys.argv[1]))
compiler = StepCompiler(config, jax.devices())
compiled, _ = compiler.compile(config.data.batch_size)
trainer = Trainer(config, load_corpus(config.data.path, config.model.block_size), compiler.mesh)
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # forgets the highest so far
trainer.initialize()
list(trainer.run(0, 2))
print(peak_bytes(compiled), resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_memory_is_what_a_run_takes_on_a_cpu(config):
    config.model.n_embd, config.model.block_size = 256, 128
    config.model.compute_dtype = "float32"
    config.data.batch_size = 256
    config.mesh.data, config.mesh.fsdp = 1, 1
    config.train.steps_per_dispatch = 1
    command = [sys.executable, "-c", MEASURE, json.dumps(config.freeze().to_dict())]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    planned, measured = map(int, output.split())
    assert measured > 500e6  # much more than JAX itself
    assert planned == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
def test_the_command_prints_json_for_more_devices_than_there_are(config, text_file):
    code = (
        "import sys; sys.modules['jax_plugins.xla_cuda12'] = None\n"  # as if not installed
        "from shakegpt_jax.cli.command import run_command\n"
        "from shakegpt_jax.plan import main\n"
        "run_command(main)"
    )
    fields = ["model.n_layer=1", "model.n_embd=16", "model.block_size=8", "data.batch_size=999996"]
    arguments = [f"--config.{field}" for field in [*fields, f"data.path={text_file}"]]
    arguments += ["--config.mesh.data=-1", "--nodes=3", "--gpus_per_node=4", "--gpu=a100"]
    process = subprocess.run(
        [sys.executable, "-c", code, "--json", *arguments],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(process.stdout)
    assert report["gpu"] == "NVIDIA A100-SXM4-80GB"
    assert (report["devices"], report["compiled_for"]) == (12, "12 x virtual CPU")
    assert report["mesh"] == {"data": 12, "fsdp": 1, "tensor": 1}
    assert report["largest_batch_size"] == 999_996  # a config accepts a million
    # 11 of 12 parts of each gradient, twice, and as many of the loss.
    expected = 2 * 11 / 12 * 4 * report["parameters"]
    assert report["collective_bytes_per_step"] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes=0"], "--nodes: '0' is not a whole number from 1 to 1000"),
        (["--gpus_per_node=9999"], "--gpus_per_node: '9999' is not a whole number from 1 to 1000"),
        (["--network=nan"], "--network is nan; it must be above 0"),
        (["--gpu=h1000"], "--gpu is 'h1000'; it must be one of a100, h100, h200"),
    ],
)
def test_bad_arguments_end_in_one_line(command, arguments, message):
    code, out, err = command("plan", *arguments)
    assert (code, out) == (2, "")
    assert message in one_line(err)
