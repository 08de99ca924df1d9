import math

import numpy as np
import pytest
from fakes import PositionModel

from shakegpt_jax.evaluate import Evaluation, character_losses, evaluate


@pytest.mark.parametrize("length", [2, 4, 5, 6, 9, 10, 200])
def test_every_character_is_scored_once_in_its_window(length):
    model = PositionModel(block_size=4, vocab_size=3, favourite=1)
    ids = np.random.default_rng(length).integers(0, 3, length).astype(np.uint8)
    losses = character_losses(model, {}, ids)
    expected = [model.loss(i % 4, target) for i, target in enumerate(ids[1:])]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [3, 5, 6, 23])
def test_overlapping_windows_score_each_character_with_the_most_context(stride, length):
    model = PositionModel(block_size=4, vocab_size=3, favourite=1)
    ids = np.random.default_rng(length).integers(0, 3, length).astype(np.uint8)
    losses = character_losses(model, {}, ids, stride=stride)
    # The first window is scored whole, the others' last `stride` characters are.
    positions = [i if i < 4 else 4 - stride + (i - 4) % stride for i in range(length - 1)]
    expected = [model.loss(p, target) for p, target in zip(positions, ids[1:], strict=True)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_many_batches_give_the_loss_of_one(monkeypatch):
    model = PositionModel(block_size=4, vocab_size=3)
    ids = np.random.default_rng(0).integers(0, 3, 1_001).astype(np.uint8)
    whole = character_losses(model, {}, ids)
    monkeypatch.setattr("shakegpt_jax.evaluate._CPU_BATCH", 24)
    np.testing.assert_array_equal(character_losses(model, {}, ids), whole)


def test_summary_of_known_probabilities():
    # A model of one logit: the favourite has probability e / (e + 1) at a window's only place.
    model = PositionModel(block_size=1, vocab_size=2, favourite=0)
    ids = np.array([1, 0, 0, 0, 1], np.uint8)
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.e)
    result = evaluate(model, {}, ids)
    mean = (3 * right + wrong) / 4
    assert result.count == 4
    assert result.loss == pytest.approx(mean, rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(mean), rel=1e-6)
    assert result.bits_per_character == pytest.approx(mean / math.log(2), rel=1e-6)
    spread = math.sqrt((3 * (right - mean) ** 2 + (wrong - mean) ** 2) / 4)
    assert result.standard_error == pytest.approx(spread / 2, rel=1e-5)


def test_a_loss_beyond_reason_has_an_infinite_perplexity():
    assert Evaluation.from_losses(np.full(3, 800.0)).perplexity == math.inf


def test_sums_are_exact_over_a_million_characters():
    losses = np.full(1_000_000, 0.1, np.float32)
    assert Evaluation.from_losses(losses).loss == pytest.approx(float(np.float32(0.1)), rel=1e-12)


@pytest.mark.parametrize(
    ("length", "stride", "message"),
    [(1, None, "has none to score"), (9, 0, "stride is 0"), (9, 5, r"from 1 to block_size \(4\)")],
)
def test_what_cannot_be_evaluated_is_refused(length, stride, message):
    model = PositionModel(block_size=4, vocab_size=3)
    with pytest.raises(ValueError, match=message):
        character_losses(model, {}, np.zeros(length, np.uint8), stride=stride)
