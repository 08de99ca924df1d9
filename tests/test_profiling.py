import json

import jax.numpy as jnp
import pytest

from shakegpt_jax.model.gpt import train_flops_per_character
from shakegpt_jax.profiling import measurements
from shakegpt_jax.sharding import peak_flops


@pytest.fixture
def rates(monkeypatch) -> None:
    rates = {"flops_per_second": 1e12, "bytes_per_second": 1e10, "weights_bytes_per_second": 1e11}
    monkeypatch.setattr(
        measurements,
        "measure_ceilings",
        lambda dtype, result_dtype, n_byte: rates | {"weights_bytes": n_byte},
    )


def test_report_is_consistent(config, corpus, rates):
    work = ("train", "evaluate", "prefill", "sample")
    report = measurements.benchmark(config.freeze(), corpus, work, [1, 3])
    assert report["peak_memory_bytes"] > 1e6
    rows = {row["work"]: row for row in json.loads(json.dumps(report))["results"]}
    assert list(rows) == [
        "train step, batch 8",
        "evaluation",
        "prefill, batch 1",
        "sample, batch 1",
        "sample, batch 3",
    ]
    train = rows["train step, batch 8"]
    vocab_size = corpus.tokenizer.vocab_size
    flops = 8 * 8 * train_flops_per_character(config.model, vocab_size)
    assert train["flops_per_second"] * train["seconds"] == pytest.approx(flops)
    assert train["share_of_ceiling"] == pytest.approx(train["flops_per_second"] / 1e12)
    sample = rows["sample, batch 3"]
    assert sample["characters_per_second"] * sample["seconds"] == pytest.approx(3 * 8)
    # Four bytes for each weight but the embeddings', per character.
    weights = 4 * (12 * 16**2 + 13 * 16 + 2 * 16 + 16 * vocab_size)
    assert sample["bytes_per_second"] * sample["seconds"] == pytest.approx(8 * weights)
    # The ceiling is that of reading as many bytes, which may be in a cache.
    assert report["ceilings"]["weights_bytes"] == weights
    assert sample["share_of_ceiling"] == pytest.approx(sample["bytes_per_second"] / 1e11)


def test_measures_only_what_is_asked_for(config, corpus, rates):
    report = measurements.benchmark(config.freeze(), corpus, ["prefill"], [1])
    assert [row["work"] for row in report["results"]] == ["prefill, batch 1"]


def test_evaluates_fewer_characters_where_that_would_take_minutes(
    config, corpus, rates, monkeypatch
):
    flops = train_flops_per_character(config.model, corpus.tokenizer.vocab_size) / 3
    monkeypatch.setattr(measurements, "_CPU_FLOPS", 20 * flops)
    (row,) = measurements.benchmark(config.freeze(), corpus, ["evaluate"], [1])["results"]
    assert row["characters_per_second"] * row["seconds"] == pytest.approx(21)


@pytest.mark.slow
def test_ceilings_are_rates():
    ceilings = measurements.measure_ceilings(jnp.float32, jnp.float32, 2**22)
    # Wider than any machine: a time or a count would be outside.
    assert 1e9 < ceilings["flops_per_second"] < 1e16
    for name in ("bytes_per_second", "weights_bytes_per_second"):
        assert 1e8 < ceilings[name] < 1e15


def test_median_leaves_out_the_first_run(monkeypatch):
    now = 0.0
    durations = iter([100.0, 1.0, 5.0, 3.0])

    def work() -> None:
        nonlocal now
        now += next(durations)

    monkeypatch.setattr("time.perf_counter", lambda: now)
    assert measurements.median_seconds(work, 3) == 3.0


def test_fields_are_doubled_one_at_a_time_and_the_exponents_fitted(config, monkeypatch):
    def measure(config, corpus) -> measurements.Measurement:
        seconds = 0.1 * config.model.n_layer * config.model.n_embd**2
        return measurements.Measurement("", seconds, 1, "flops", 1.0)

    monkeypatch.setattr(measurements, "measure_training", measure)
    growth = measurements.measure_scaling(config)
    assert growth["model.n_layer"][0] == [1, 2, 4, 8]
    assert growth["model.n_layer"][1] == pytest.approx([25.6, 51.2, 102.4, 204.8])
    exponents = {field: fit for field, (_, _, fit) in growth.items()}
    assert exponents == pytest.approx(
        {"model.n_layer": 1, "model.n_embd": 2, "model.block_size": 0, "data.batch_size": 0},
        abs=1e-9,
    )


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40", None),
        ("cpu", None),
    ],
)
def test_peaks_are_known_by_name(kind, peak):
    assert peak_flops(kind) == peak
