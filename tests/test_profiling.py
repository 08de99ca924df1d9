import json

import jax.numpy as jnp
import pytest

from shakegpt_jax.model.flops import peak_flops, train_flops_per_character
from shakegpt_jax.profiling import measurements


@pytest.fixture
def ceilings(monkeypatch) -> dict[str, float]:
    ceilings = {"flops_per_second": 1e12, "bytes_per_second": 1e10}
    monkeypatch.setattr(measurements, "measure_ceilings", lambda dtype: ceilings)
    return ceilings


def test_report_is_consistent(config, corpus, ceilings):
    report = json.loads(json.dumps(measurements.benchmark(config.freeze(), corpus, [1, 3])))
    assert report["ceilings"] == ceilings
    assert report["peak_memory_bytes"] > 1e6
    rows = {row["work"]: row for row in report["results"]}
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
    weights = 12 * 16**2 + 13 * 16 + 2 * 16 + 16 * vocab_size
    assert sample["bytes_per_second"] * sample["seconds"] == pytest.approx(8 * 4 * weights)


@pytest.mark.slow
def test_ceilings_are_rates():
    ceilings = measurements.measure_ceilings(jnp.float32)
    # Wider than any machine: a time or a count would be outside.
    assert 1e9 < ceilings["flops_per_second"] < 1e16
    assert 1e8 < ceilings["bytes_per_second"] < 1e14


def test_median_leaves_out_the_first_run(monkeypatch):
    now = 0.0
    durations = iter([100.0, 1.0, 5.0, 3.0])

    def work() -> None:
        nonlocal now
        now += next(durations)

    monkeypatch.setattr("time.perf_counter", lambda: now)
    assert measurements.median_seconds(work, 3) == 3.0


def test_exponent_of_known_growth():
    assert measurements.exponent([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0]) == pytest.approx(2)
    assert measurements.exponent([5, 10], [1.0, 1.0]) == pytest.approx(0)


def test_growth_is_measured_at_doubled_values(config, monkeypatch):
    seen = []

    def fake_seconds(config) -> float:
        seen.append(config.model.n_layer)
        return 0.1 * config.model.n_layer

    monkeypatch.setattr(measurements, "step_seconds", fake_seconds)
    values, seconds = measurements.measure_growth(config, "model.n_layer")
    assert values == seen == [1, 2, 4, 8]
    assert measurements.exponent(values, seconds) == pytest.approx(1)


def test_a_step_of_a_config_can_be_timed(config, text, tmp_path):
    (tmp_path / "text.txt").write_text(text)
    config.data.path = str(tmp_path / "text.txt")
    assert 0 < measurements.step_seconds(config) < 60


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
