import dataclasses
import json
import math
import time

import numpy as np
import pytest
from fakes import SmallFiles

from shakegpt_jax.cli.command import dump_json
from shakegpt_jax.errors import UserError
from shakegpt_jax.reporting.metrics import (
    Evaluation,
    MetricsFile,
    MetricsRow,
    read_metrics,
)

EVALUATION = Evaluation(2.0, 0.1, math.exp(2.0), 2.0 / math.log(2), 99)


def trained(step: int, seconds: float = 1.0) -> MetricsRow:
    return dataclasses.replace(row(step), train_time=seconds, wall_time=None)


def row(step: int, evaluation: Evaluation | None = None) -> MetricsRow:
    return MetricsRow(
        step=step,
        characters_per_second=5.0,
        train_loss=3.0,
        learning_rate=1e-3,
        gradient_norm=0.5,
        evaluation=evaluation,
        train_time=1.5 * step,
        wall_time=2.0 * step,
    )


def write(workdir, rows: list[MetricsRow]) -> list[str]:
    lines = [json.dumps(row.to_json()) for row in rows]
    (workdir / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return lines


def test_row_survives_json():
    for evaluation in (None, EVALUATION):
        saved = json.loads(json.dumps(row(3, evaluation).to_json()))
        assert MetricsRow.from_json(saved) == row(3, evaluation)
        assert ("val_loss" in saved) == (evaluation is not None)
        assert "skipped_updates" not in saved


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "3"},
        {"step": None},
        {"step": 3.5},
        {"learning_rate": None},
        {"train_time": True},
        {"train_loss": math.nan},
        {"wall_time": math.inf},
        {"val_loss": 1.0},
    ],
)
def test_refuses_rows_that_no_run_wrote(changes):
    with pytest.raises((ValueError, TypeError)):
        MetricsRow.from_json(row(3).to_json() | changes)


@pytest.mark.parametrize(
    "line", [pytest.param("[" * 200_000, id="nested"), "{", "[]", "{}", '{"step": 3}', "3", "\xff"]
)
def test_names_the_line_that_is_not_a_row(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(line.encode("latin-1") + b"\n")
    with pytest.raises(UserError, match=r"metrics.jsonl, line 1 is not a row of metrics"):
        read_metrics(tmp_path)


def test_a_resumed_run_drops_corrupt_rows_and_says_so(tmp_path):
    before, after = write(tmp_path, [row(3), row(6)])
    (tmp_path / "metrics.jsonl").write_text(f"{before}\ngarbage\n{after}\n")
    reports: list[str] = []
    file = MetricsFile(tmp_path, 6, 0.0, reports.append)
    assert reports == [f"{tmp_path}/metrics.jsonl, line 2 is not a row of metrics: dropped"]
    file.append(trained(9), None)
    file.flush()
    rows = read_metrics(tmp_path)
    assert [each.step for each in rows] == [3, 6, 9]
    assert rows[-1].train_time == 10.0


def test_a_last_row_needs_no_newline(tmp_path):
    lines = write(tmp_path, [row(3), row(6)])
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert [each.step for each in read_metrics(tmp_path)] == [3, 6]
    MetricsFile(tmp_path, 6, 0.0, pytest.fail)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == lines


def test_drops_rows_after_the_checkpoint_and_an_incomplete_last_line(tmp_path):
    lines = write(tmp_path, [row(3), row(6), row(9)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "tra')
    assert [each.step for each in read_metrics(tmp_path)] == [3, 6, 9]
    log = MetricsFile(tmp_path, 6, time.perf_counter() - 100, pytest.fail)
    log.append(trained(9, seconds=0.5), None)
    log.flush()
    *kept, new = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert kept == lines[:2]
    assert json.loads(new)["train_time"] == 9.5
    assert json.loads(new)["wall_time"] == pytest.approx(112, abs=10)


def test_times_are_not_invented_when_the_file_was_removed(tmp_path):
    write(tmp_path, [row(10, EVALUATION), row(20, EVALUATION)])
    log = MetricsFile(tmp_path, 20, time.perf_counter(), pytest.fail)
    (tmp_path / "metrics.jsonl").unlink()  # while running: the rows are in memory
    log.append(trained(25, seconds=2.0), None)
    log.flush()
    assert log.rows[-1].train_time == 32.0
    assert [each.step for each in read_metrics(tmp_path)] == [25]

    (tmp_path / "metrics.jsonl").unlink()
    for step in (40, 50):  # lost while the run was stopped: unknown from then on
        log = MetricsFile(tmp_path, step - 10, time.perf_counter(), pytest.fail)
        log.append(trained(step), EVALUATION)
        log.flush()
    for saved in read_metrics(tmp_path):
        assert (saved.train_time, saved.wall_time) == (None, None)
    assert [each.step for each in read_metrics(tmp_path)] == [40, 50]


def test_rows_that_could_not_be_written_are_written_later(tmp_path):
    log = MetricsFile(tmp_path, 0, 0.0, pytest.fail)
    with SmallFiles():
        log.append(trained(1), None)
        with pytest.raises(OSError):
            log.flush()
    assert len((tmp_path / "metrics.jsonl").read_bytes()) == 20
    log.append(trained(2), EVALUATION)
    log.flush()
    rows = read_metrics(tmp_path)
    assert [each.step for each in rows] == [1, 2]
    assert rows[1].evaluation == EVALUATION


def test_huge_loss_has_infinite_perplexity():
    assert Evaluation.from_losses(np.full(3, 800.0)).perplexity == math.inf


def test_json_is_strict_however_deep():
    values = {"a": [math.nan, (1.5, -math.inf)], "b": {"c": math.inf}, "d": "NaN", "e": [True, 3]}
    expected = {"a": [None, [1.5, None]], "b": {"c": None}, "d": "NaN", "e": [True, 3]}
    for indent in (None, 2):
        assert json.loads(dump_json(values, indent), parse_constant=pytest.fail) == expected


def test_sums_are_exact_over_a_million_characters():
    losses = np.full(1_000_000, 0.1, np.float32)
    assert Evaluation.from_losses(losses).loss == pytest.approx(float(np.float32(0.1)), rel=1e-12)
