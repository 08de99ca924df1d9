"""Comparing runs: which text was scored, and which settings differ."""

import json
import math
import shutil

import pytest
from conftest import small_config
from fakes import one_line

from shakegpt_jax.reporting import curves
from shakegpt_jax.reporting.metrics import Evaluation
from shakegpt_jax.training.run import train


@pytest.fixture(scope="module")
def runs(finished, text, tmp_path_factory):
    """Return a folder with three runs: `b` differs from `a` in a setting, `c` also in the text."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(finished, folder / "a")
    config = small_config()
    config.train.seed = 2
    for name, length in (("b", 20_000), ("c", 10_000)):
        (folder / f"{name}.txt").write_text(text[:length])
        config.data.path = str(folder / f"{name}.txt")
        train(config.copy().freeze(), folder / name)
    return folder


def test_losses_of_the_same_text_are_ranked(runs, command):
    code, out, err = command("evaluate", runs / "a", runs / "b")
    assert (code, err) == (0, "")
    header, first, second, text, *settings = out.splitlines()
    assert "text" not in header
    assert float(first.split()[1]) < float(second.split()[1])
    # Two paths, and one text.
    assert text.startswith("text: the validation split of ") and text.endswith(" 1,999 characters")
    assert settings[-1] == "train.seed: 0 in a; 2 in b" and settings[0].startswith("data.path: ")
    assert len(settings) == 2


def test_losses_of_different_texts_are_told_apart(runs, command):
    code, out, err = command("evaluate", runs)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    rows: list[str] = []
    tables = {}  # runs by the text that is named below their table
    for line in lines[: lines.index("Losses on different texts cannot be compared.")]:
        name, *_ = line.split()
        if name == "text:":
            tables[line.partition(" split of ")[2]] = rows
        elif name == "run":
            rows = []
        else:
            rows.append(name)
    assert tables.pop(f"{runs}/c.txt, 999 characters") == ["c"]
    ((text, others),) = tables.items()
    assert text.endswith(", 1,999 characters") and sorted(others) == ["a", "b"]
    assert lines[-1] == "train.seed: 0 in a; 2 in b, c"
    lines = command("evaluate", runs, "--json")[1].splitlines()
    assert len({json.loads(line)["text_sha256"] for line in lines}) == 2


def test_curves_of_different_texts_are_told_apart(runs, command, monkeypatch):
    notes = []
    draw = curves.draw_curves
    monkeypatch.setattr(curves, "draw_curves", lambda *args: notes.append(args[-1]) or draw(*args))
    code, out, err = command("plot", runs / "a", runs / "b")
    assert (code, out) == (0, f"{runs}/curves.png\n")
    assert err.splitlines()[-1] == "train.seed: 0 in a; 2 in b"
    shutil.rmtree(runs / "b" / "checkpoints")
    code, out, err = command("plot", runs)  # b has no checkpoint yet, and so no settings
    assert code == 0
    warning, *settings = err.splitlines()
    assert warning == "losses on different texts cannot be compared"
    assert settings[-1] == "train.seed: 0 in a; 2 in c"
    assert notes == ["", warning]


def test_json_is_strict_where_the_perplexity_is_infinite(finished, command, monkeypatch):
    evaluation = Evaluation(800.0, 0.1, math.inf, 1154.0, 9)
    monkeypatch.setattr(Evaluation, "from_losses", lambda losses: evaluation)
    code, out, _ = command("evaluate", finished, "--json")
    assert code == 0
    figures = json.loads(out, parse_constant=pytest.fail)
    assert (figures["perplexity"], figures["loss"]) == (None, 800)


def test_a_loss_that_is_not_finite_is_refused(finished, command, monkeypatch):
    evaluation = Evaluation(math.nan, math.nan, math.nan, math.nan, 9)
    monkeypatch.setattr(Evaluation, "from_losses", lambda losses: evaluation)
    code, out, err = command("evaluate", finished)
    assert (code, out) == (2, "") and "log-probabilities that are not finite" in one_line(err)
