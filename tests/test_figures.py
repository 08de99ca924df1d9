"""docs/figures.py draws what its sources say."""

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

import shakegpt_jax
from shakegpt_jax.reporting.metrics import read_metrics

sys.path.append(str(Path(__file__).parent.parent / "docs"))

import figures


@pytest.fixture
def points(monkeypatch, tmp_path):
    """Draws and saves a figure; returns the points of its lines."""

    def draw(name: str, *sources: Path) -> list[list[list[float]]]:
        axes = figures.draw(name, list(sources), tmp_path / "figure.svg")
        svg = (tmp_path / "figure.svg").read_text()
        assert ET.fromstring(svg).tag.endswith("svg")
        assert "prefers-color-scheme: dark" in svg and figures.PAPER not in svg.split("</style>")[1]
        assert "var(--c0)" in svg and "var(--c1)" in svg
        return [line.get_xydata().tolist() for line in axes.lines]

    monkeypatch.setattr(figures, "LINE", "to be,\n")
    return draw


def test_losses_and_parameters_are_those_of_the_run(points, finished):
    rows = [row for row in read_metrics(finished) if row.evaluation]
    validation, best, training = points("overfitting", finished)
    assert training[-1] == [rows[-1].step, rows[-1].train_loss]
    assert validation == [[row.step, row.evaluation.loss] for row in rows]
    assert best == [min(validation, key=lambda point: point[1])]
    n_params = shakegpt_jax.load(finished).n_params
    assert points("parameters", finished) == [[[n_params, best[0][1]]]]


def test_sampling_shows_each_batch_size(points, tmp_path):
    rows = [{"work": f"sample, batch {n}", "characters_per_second": 100.0 * n} for n in (32, 1)]
    rows.append({"work": "train step, batch 12", "characters_per_second": 5.0})
    (tmp_path / "cpu.json").write_text(json.dumps({"results": rows}))
    assert points("sampling", tmp_path / "cpu.json") == [[[1, 100], [32, 3200]]]


@pytest.mark.slow
def test_drafts_and_attention(points, finished):
    (rates,) = points("drafts", finished)
    assert [x for x, _ in rates] == list(figures.TEMPERATURES)
    assert 0 < max(y for _, y in rates) < 1
    assert points("attention", finished) == []
    (image,) = figures.attention([finished]).images
    np.testing.assert_allclose(np.sum(image.get_array(), 1), 1, rtol=1e-6)
