import json
import math
import statistics

import numpy as np
import pytest
from fakes import PositionModel

from shakegpt_jax.checkpoints.reader import is_valid_metrics
from shakegpt_jax.inference.scoring import character_losses, evaluate, next_logits
from shakegpt_jax.reporting.metrics import MetricsRow


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


def test_batch_size_does_not_change_the_losses(monkeypatch):
    model = PositionModel(block_size=4, vocab_size=3)
    ids = np.random.default_rng(0).integers(0, 3, 1_001).astype(np.uint8)
    whole = character_losses(model, {}, ids)
    monkeypatch.setattr("shakegpt_jax.inference.scoring._CPU_BATCH", 24)
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
    expected = statistics.stdev([wrong, right, right, right]) / 2  # of a sample
    assert result.standard_error == pytest.approx(expected, rel=1e-5)


def test_the_standard_error_of_one_character_is_unknown():
    model = PositionModel(block_size=1, vocab_size=2)
    one = evaluate(model, {}, np.array([1, 0], np.uint8))
    assert (one.count, one.standard_error) == (1, None)
    assert is_valid_metrics(one.to_dict()) and "standard_error" not in one.to_dict()
    names = ("characters_per_second", "train_loss", "learning_rate", "gradient_norm")
    times = {"train_time": 1.0, "wall_time": 1.0}
    row = MetricsRow(step=1, evaluation=one, **dict.fromkeys(names, 1.0), **times)
    assert MetricsRow.from_json(json.loads(json.dumps(row.to_json()))) == row


@pytest.mark.parametrize(("length", "stride"), [(1, None), (4, None), (9, None), (23, 2)])
def test_logits_of_every_position_come_from_its_window(length, stride):
    model = PositionModel(block_size=4, vocab_size=3, favourite=1)
    ids = np.zeros(length, np.uint8)
    logits = next_logits(model, {}, ids, stride=stride)
    step = stride or 4
    positions = [i if i < 4 else 4 - step + (i - 4) % step for i in range(length)]
    expected = [[0, position + 1, 0] for position in positions]
    np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize(
    ("length", "stride", "message"),
    [(1, None, "length is 1; it"), (9, 0, "stride is 0"), (9, 5, "from 1 to 4")],
)
def test_refuses_what_cannot_be_evaluated(length, stride, message):
    model = PositionModel(block_size=4, vocab_size=3)
    with pytest.raises(ValueError, match=message):
        character_losses(model, {}, np.zeros(length, np.uint8), stride=stride)
