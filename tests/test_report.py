"""The report of an evaluation: its numbers here, its page in a browser in test_report_page.py."""

import base64
import dataclasses
import functools
import hashlib
import html
import json
import random
import re
import shutil

import jax
import numpy as np
import pytest
from fakes import PositionModel, one_line, with_new_field

import shakegpt_jax
from shakegpt_jax.inference import evaluation
from shakegpt_jax.inference.evaluation import copied_stretches
from shakegpt_jax.inference.inspection import attention_weights
from shakegpt_jax.inference.scoring import (
    character_losses,
    character_predictions,
)
from shakegpt_jax.model.gpt import GPT, CausalSelfAttention, init_params
from shakegpt_jax.web import breakdown, report
from shakegpt_jax.web.page import render_page


def page_data(page: str) -> dict:
    (data,) = re.findall('<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(data)


def decode(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def test_groups_have_the_mean_and_the_standard_error_of_their_losses():
    draw = np.random.default_rng(0)
    losses, groups = draw.exponential(2, 500).astype(np.float32), draw.integers(0, 4, 500)
    found = breakdown.group_losses(losses, groups, 5)
    own = [losses[groups == group].astype(float) for group in range(4)]
    assert found["counts"] == [*map(len, own), 0]
    assert found["means"] == pytest.approx([*(each.mean() for each in own), 0], rel=1e-6)
    errors = [each.std(ddof=1) / np.sqrt(len(each)) for each in own]
    assert found["errors"] == pytest.approx([*errors, 0], rel=1e-6)


@pytest.mark.parametrize("stride", [None, 1, 2, 4])
def test_positions_are_those_from_which_the_characters_are_predicted(stride):
    model = PositionModel(block_size=4, vocab_size=3, favourite=1)  # it predicts by position
    ids = np.ones(19, np.uint8)
    positions = breakdown.window_positions(18, 4, stride)
    losses = character_losses(model, {}, ids, stride=stride)
    np.testing.assert_allclose(losses, [model.loss(p, 1) for p in positions], rtol=1e-5)


def test_every_character_has_a_kind():
    examples = {
        "lower-case letters": "azßñ",
        "upper-case letters": "AZÑ",
        "letters without case": "中ש\N{COMBINING ACUTE ACCENT}",
        "digits": "09٣",
        "spaces": " \t\N{NO-BREAK SPACE}",
        "newlines": "\n",
        "punctuation and symbols": "!'-€+\N{GRINNING FACE}",
        "others": "\x07\N{ZERO WIDTH SPACE}",
    }
    assert tuple(examples) == breakdown.KINDS
    for kind, characters in enumerate(examples.values()):
        assert breakdown.character_kinds(characters).tolist() == [kind] * len(characters)


def test_letters_are_counted_within_their_words():
    text = "To be,\n'tis o'er--3rd naïve x"
    vocabulary = "".join(sorted(set(text)))
    ids = np.array([vocabulary.index(character) for character in text])
    expected = [0] * len(text)
    for word in re.finditer(r"(?:[^\W\d_]|')+", text):
        letters = [i for i in range(*word.span()) if text[i] != "'"]
        for rank, i in enumerate(letters):
            expected[i] = rank + 1
    assert breakdown.letter_ranks(ids, vocabulary).tolist() == expected
    assert max(expected) == 5


def test_calibration_is_that_of_a_loop_over_bins():
    draw = np.random.default_rng(0)
    confidences = np.append(draw.uniform(0.05, 1, 400), [1, 0.2, 0.4]).astype(np.float32)
    correct = draw.uniform(size=403) < confidences**2  # too sure
    found = breakdown.calibrate(confidences, correct, 10)
    error = 0.0
    for m in range(10):
        inside = (confidences > np.float64(m / 10)) & (confidences <= np.float64((m + 1) / 10))
        assert found["counts"][m] == inside.sum()
        if inside.any():
            confidence, accuracy = confidences[inside].mean(dtype=float), correct[inside].mean()
            assert found["confidences"][m] == pytest.approx(confidence)
            assert found["accuracies"][m] == pytest.approx(accuracy)
            error += inside.mean() * abs(accuracy - confidence)
    assert found["error"] == pytest.approx(error)
    assert 0.1 < error < 0.3  # the mean of c - c^2 is 1/6 or so
    assert breakdown.calibrate(np.ones(5), np.ones(5, bool))["error"] == 0


def test_copied_stretches_are_the_maximal_ones_of_brute_force():
    draw = random.Random(0)
    for _ in range(100):
        text, source = ("".join(draw.choices("abc", k=30)) for _ in range(2))
        pieces = [(i, j) for i in range(30) for j in range(i + 3, 31) if text[i:j] in source]
        maximal = [
            (i, j)
            for i, j in pieces
            if not any(a <= i and j <= b and (a, b) != (i, j) for a, b in pieces)
        ]
        found = copied_stretches(text, source, 3)
        assert [(start, end) for start, end, _ in found] == maximal
        assert all(source.find(text[start:end]) == place for start, end, place in found)
    assert copied_stretches("short", "short") == []
    assert copied_stretches("x" * 50, "y" + "x" * 50) == [(0, 50, 1)]


@pytest.mark.parametrize("remat", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_attention_weights_give_the_output_of_each_attention(config, remat):
    config.model.n_layer, config.model.remat = 2, remat
    model = GPT(config.freeze().model, 11)
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    ids = np.random.default_rng(0).integers(0, 11, (3, 8)).astype(np.int32)
    weights_BxLxHxTxT = np.asarray(attention_weights(model, params, ids))
    assert weights_BxLxHxTxT.shape == (3, 2, 2, 8, 8)
    np.testing.assert_allclose(weights_BxLxHxTxT.sum(4), 1, rtol=1e-5)
    assert not np.triu(weights_BxLxHxTxT, 1).any()

    def captures(module, method):
        return module.name == "ln_1" or isinstance(module, CausalSelfAttention)

    _, captured = jax.jit(functools.partial(model.apply, capture_intermediates=captures))(
        {"params": params}, ids
    )
    for layer in range(2):
        block = captured["intermediates"][f"block_{layer}"]
        own = jax.tree.map(np.asarray, params[f"block_{layer}"]["attn"])
        (x_BxTxD,), ((expected_BxTxD, _),) = block["ln_1"]["__call__"], block["attn"]["__call__"]
        kernel, bias = (own["c_attn"][name][..., 32:] for name in ("kernel", "bias"))
        v_BxTxHxK = (np.asarray(x_BxTxD) @ kernel + bias[None, None]).reshape(3, 8, 2, 8)
        y_BxTxHxK = np.einsum("bhts,bshk->bthk", weights_BxLxHxTxT[:, layer], v_BxTxHxK)
        kernel, bias = own["c_proj"]["kernel"], own["c_proj"]["bias"]
        y_BxTxD = y_BxTxHxK.reshape(3, 8, 16) @ kernel + bias[None, None]
        np.testing.assert_allclose(y_BxTxD, expected_BxTxD, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stride", [pytest.param(None, marks=pytest.mark.slow), 3])
def test_predictions_are_those_of_the_logits(finished, text, stride):
    lm = shakegpt_jax.load(finished)
    ids = lm.tokenizer.encode(text[:300])
    found = character_predictions(lm.model, lm.params, ids, stride=stride)
    logits = lm.logits(text[:300], stride=stride)[:-1].astype(float)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.log(probabilities[np.arange(299), ids[1:]])
    np.testing.assert_allclose(found.losses, expected, rtol=1e-4)
    np.testing.assert_allclose(found.confidences, probabilities.max(1), rtol=1e-4)
    np.testing.assert_array_equal(found.correct, probabilities.argmax(1) == ids[1:])


def test_the_page_has_what_the_model_predicts(finished, text, tmp_path, command, monkeypatch):
    monkeypatch.setattr(report, "_SHOWN_CHARACTERS", 500)
    find = functools.partial(copied_stretches, shortest=10)
    monkeypatch.setattr(report, "copied_stretches", find)
    page = tmp_path / "report.html"
    code, out, err = command("evaluate", "--workdir", finished, "--html", page)
    assert (code, err) == (0, "")
    assert out.endswith(f"\npage                {page}\n")
    data = page_data(page.read_text())
    lm, shown = shakegpt_jax.load(finished), data["shown"]
    val_text = text[18_000:]
    assert shown["text"] == val_text[:500]
    losses = decode(shown["losses"], "<f4")
    np.testing.assert_allclose(losses[1:], -lm.score(val_text[:500]), rtol=1e-4)
    values = decode(shown["distributions"]["values"], "<u2").reshape(500, -1)
    probabilities = np.exp(-shown["distributions"]["unit"] * values.astype(float))
    assert probabilities.shape[1] == lm.tokenizer.vocab_size
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-3)
    ids = lm.tokenizer.encode(val_text[:500])
    np.testing.assert_allclose(-np.log(probabilities[range(500), ids]), losses, atol=2e-4)
    positions = data["positions"]
    assert positions["counts"] == [250] * 7 + [249]
    loss = np.average(positions["means"], weights=positions["counts"])
    assert f"loss                {loss:.4f} nats/character" in out
    assert data["evaluation"]["loss"] == pytest.approx(lm.evaluate(val_text).loss, rel=1e-5)
    kinds = data["kinds"]
    assert kinds["counts"][5] == val_text[1:].count("\n")
    assert np.average(kinds["means"], weights=kinds["counts"]) == pytest.approx(loss)
    train_text = text[:18_000]
    assert shown["copies"]["stretches"]
    for stretch in shown["copies"]["stretches"]:
        start, end, place = (stretch[name] for name in ("start", "end", "place"))
        assert end - start >= 10
        assert train_text[place : place + end - start] == shown["text"][start:end]
    attention = shown["attention"]
    stored = decode(attention["values"], "u1")
    for start, end, begin, offset in attention["lines"]:
        assert end - begin <= 8 and "\n" not in shown["text"][start:end]
        weights = stored[offset:][: 2 * (end - start) * (end - begin)] / 255
        weights = weights.reshape(2, end - start, end - begin) ** 2
        np.testing.assert_allclose(weights.sum(2), 1, atol=0.02)
    covered = sum(end - start for start, end, _, _ in attention["lines"])
    assert covered == len(shown["text"].replace("\n", ""))


def test_of_a_large_vocabulary_the_most_probable_characters_are_kept():
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 3, (7, 300)).astype(np.float32)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    found = report.encode_distributions(log_probs)
    assert found["size"] == 100
    ids = decode(found["ids"], "<u4").reshape(7, 100)
    values = -found["unit"] * decode(found["values"], "<u2").reshape(7, 100)
    for row, kept, stored in zip(log_probs, ids, values, strict=True):
        assert kept.tolist() == sorted(range(300), key=lambda i: -row[i])[:100]
        np.testing.assert_allclose(stored, row[kept], atol=2e-4)


def test_long_lines_are_split_and_lines_end_with_their_piece():
    text = "ab\n\nabcdefg\nxy" + "zz\n"
    lines = report.split_lines(text, [0, 14], 3)
    assert [text[start:end] for _, start, end in lines] == ["ab", "abc", "def", "g", "xy", "zz"]
    assert [begin for begin, _, _ in lines] == [0] * 5 + [14]


def test_no_text_can_break_out_of_the_page():
    evil = "</script><script>alert(1)</script><!--<b>&\N{RIGHT-TO-LEFT OVERRIDE}"
    page, _ = render_page("report", "report.js", evil, {"text": evil})
    assert page.isascii() or evil not in page
    assert page_data(page) == {"text": evil}
    assert f"<title>{html.escape(evil)}</title>" in page
    assert page.count("<script") == page.count("</script>") == 2
    for kind, tag in (
        ("style", "<style>(.*?)</style>"),
        ("script", '<script type="module">(.*)</script>'),
    ):
        (content,) = re.findall(tag, page, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in page


def test_what_a_report_cannot_show_ends_in_one_line(finished, tmp_path, command, monkeypatch):
    lm, page = shakegpt_jax.load(finished), tmp_path / "report.html"
    args = ("evaluate", "--workdir", finished, "--html", page)

    def refused(changed):
        monkeypatch.setattr(evaluation, "load", lambda *args, **options: changed)
        code, out, err = command(*args)
        assert (code, out) == (2, "") and not page.exists()
        return one_line(err)

    broken = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(np.nan), lm.params)
    line = refused(dataclasses.replace(lm, params=broken))
    assert "log-probabilities that are not finite" in line
    assert "config.model.n_expert" in refused(with_new_field(lm))


def test_a_perplexity_beyond_all_floats_is_null(finished, tmp_path, command, monkeypatch):
    lm, page = shakegpt_jax.load(finished), tmp_path / "report.html"
    params = jax.tree.map(lambda x: x, lm.params)
    params["lm_head"]["kernel"] = 1e5 * params["lm_head"]["kernel"]
    sure = dataclasses.replace(lm, params=params)
    monkeypatch.setattr(evaluation, "load", lambda *args, **options: sure)
    assert command("evaluate", "--workdir", finished, "--html", page)[0] == 0
    found = page_data(page.read_text())["evaluation"]
    assert found["perplexity"] is None and found["loss"] > 1_000


@pytest.mark.slow
def test_the_report_says_whether_it_shows_training_text(finished_copy, text, tmp_path, command):
    page = tmp_path / "report.html"
    args = ("evaluate", "--workdir", finished_copy, "--html", page, "--characters", "400")
    assert command(*args, "--split", "train")[0] == 0
    data = page_data(page.read_text())
    assert data["shown"]["copies"]["whole"]
    assert data["text"]["name"] == "the training split"
    starts = data["shown"]["starts"]  # of 50 windows, spread over the text
    assert starts == list(range(0, 450, 9))
    assert all(data["shown"]["text"][i : i + 9] in text for i in starts)
    other = tmp_path / "other.txt"
    other.write_text(text[100:200])
    assert command(*args, "--path", other)[0] == 0  # it replaces the page
    assert page_data(page.read_text())["shown"]["copies"]["whole"]


@pytest.mark.slow
def test_without_the_training_text_the_report_goes_on(finished, tmp_path, command, monkeypatch):
    moved = tmp_path / "run"
    shutil.copytree(finished, moved)
    (tmp_path / "other.txt").write_text("the thing\n" * 20)
    from shakegpt_jax.data import corpus

    monkeypatch.setattr(corpus, "read_text", lambda path, report: "another text " * 90)
    page = tmp_path / "report.html"
    args = ("--workdir", moved, "--path", tmp_path / "other.txt", "--html", page)
    code, _, err = command("evaluate", *args)
    assert (code, err) == (0, "")
    copies = page_data(page.read_text())["shown"]["copies"]
    assert "is not the text that the model was trained on" in copies["problem"]
    assert copies["stretches"] == []


def test_what_cannot_be_written_is_refused_before_anything_is_computed(
    finished, tmp_path, command, monkeypatch
):
    monkeypatch.setattr(evaluation, "select", lambda *args, **kw: pytest.fail("computed"))
    for path, message in [
        ("report.png", "give a file such as report.html"),
        ("none/report.html", "no such folder: "),
    ]:
        code, out, err = command("evaluate", "--workdir", finished, "--html", tmp_path / path)
        assert (code, out) == (2, "")
        assert message in one_line(err)
    twice = ("--workdir", finished, "--workdir", shutil.copytree(finished, tmp_path / "other"))
    code, out, err = command("evaluate", *twice, "--html", tmp_path / "report.html")
    assert (code, out) == (2, "")
    assert "--html shows one run, and these are 2" in one_line(err)
