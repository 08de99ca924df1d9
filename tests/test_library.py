"""The library: training, inspecting and saving a model from Python."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import Crash, crash_at_9

import shakegpt_jax
from shakegpt_jax import GPT, CharTokenizer, Config, ModelConfig, UserError


def test_train_returns_the_model_and_its_rows(run_config, tmp_path):
    seen: list[dict] = []
    with pytest.raises(Crash):
        shakegpt_jax.train(run_config, tmp_path / "run", [seen.append, crash_at_9])
    assert [row["step"] for row in seen] == [3, 6, 9]
    lm, rows = shakegpt_jax.train(run_config, tmp_path / "run", callbacks=[seen.append])
    assert [row["step"] for row in seen] == [3, 6, 9, 9, 12]  # resumed at 6
    assert rows == [*seen[:2], *seen[3:]]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert rows == list(map(json.loads, lines))
    best = min((row for row in rows if "val_loss" in row), key=lambda row: row["val_loss"])
    assert (lm.step, lm.metrics["loss"]) == (best["step"], best["val_loss"])
    assert shakegpt_jax.train(run_config, tmp_path / "run").rows == rows


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shakegpt_jax.train("cpu", "x"), "config is 'cpu'; it must be a Config, as of"),
        (lambda: shakegpt_jax.train(Config(), None), "workdir is None; it must be a folder name"),
        (lambda: shakegpt_jax.train(Config(), "x", [1]), "callbacks is [1]; it must be a list of"),
        (
            lambda: shakegpt_jax.train(Config(model=ModelConfig(n_head=7)), "x"),
            "config.model.n_embd is 768; it must be a multiple of n_head (7)",
        ),
        (lambda: GPT(ModelConfig(n_layer=0), 9), "config.model.n_layer is 0; it must be a whole"),
        (lambda: GPT(ModelConfig(n_embd=12), 9), "config.model.n_embd is 12; it must be a mult"),
    ],
)
def test_refuses_invalid_input_before_it_starts(tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        call()
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def lm(finished) -> shakegpt_jax.LanguageModel:
    return shakegpt_jax.load(finished)


@pytest.mark.parametrize("bad", [-1, 10_000])
def test_ids_outside_the_vocabulary_are_refused(lm, bad):
    for ids in (np.array([[0, bad]]), jnp.array([[0, bad]])):
        with pytest.raises(UserError, match=rf"id {bad} is outside the vocabulary's \[0, "):
            lm.model.apply({"params": lm.params}, ids)
    with pytest.raises(UserError, match="9 characters exceed block_size 8"):
        lm.model.apply({"params": lm.params}, np.zeros((1, 9), int))


def test_a_text_and_a_list_of_one_are_continued_alike(lm):
    options = {"max_new_tokens": 20, "seed": 3, "stop": "e", "top_k": 5}
    pieces = list(lm.stream("To be", **options))
    assert [[piece] for piece in pieces] == list(lm.stream(("To be",), **options))
    assert lm.generate("To be", **options) == "To be" + "".join(pieces)
    assert lm.generate(("To be",), **options) == [lm.generate("To be", **options)]


def test_attention_and_hidden_states_are_those_of_the_logits(lm):
    text = "To be"
    weights, states = lm.attention(text), lm.hidden_states(text)
    assert weights.shape == (1, 2, 5, 5) and states.shape == (2, 5, 16)
    np.testing.assert_allclose(weights.sum(3), 1, rtol=1e-5)
    assert not np.triu(weights, 1).any()
    np.testing.assert_allclose(weights[..., :3, :3], lm.attention(text[:3]), rtol=1e-5)
    ids = lm.tokenizer.encode(text)
    embedded = lm.params["wte"]["embedding"][ids] + lm.params["wpe"]["embedding"][:5]
    np.testing.assert_allclose(states[0], embedded, rtol=1e-5)
    logits = lm.model.apply({"params": lm.params}, states[-1], method="head")
    np.testing.assert_allclose(logits, lm.logits(text), rtol=1e-4, atol=1e-5)
    for call in (lm.attention, lm.hidden_states):
        for bad, message in ((7, "text is 7"), ("", "length is 0"), ("a" * 9, "from 1 to 8")):
            with pytest.raises(UserError, match=message):
                call(bad)


@pytest.mark.slow
def test_attention_and_hidden_states_are_those_of_transformers(lm, exported):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    options = {"attn_implementation": "eager"}
    hf = transformers.GPT2LMHeadModel.from_pretrained(exported, **options).eval()
    ids = torch.tensor(lm.tokenizer.encode("To be").astype(int))[None]
    with torch.no_grad():
        found = hf(ids, output_attentions=True, output_hidden_states=True)
    attentions = np.stack([layer[0].numpy() for layer in found.attentions])
    np.testing.assert_allclose(lm.attention("To be"), attentions, atol=1e-5)
    *inputs, normalized = (state[0].detach() for state in found.hidden_states)
    states = lm.hidden_states("To be")
    np.testing.assert_allclose(states[:-1], np.stack(inputs), atol=1e-5)
    last = hf.transformer.ln_f(torch.tensor(states[-1])).detach()
    np.testing.assert_allclose(last, normalized, atol=1e-5)


def test_a_saved_model_is_the_same(lm, run_config, tmp_path):
    lm.save(tmp_path / "saved")
    saved = shakegpt_jax.load(tmp_path / "saved")
    assert jax.tree.all(jax.tree.map(np.array_equal, saved.params, lm.params))
    for name in ("step", "metrics", "config", "tokenizer", "text_sha256"):
        assert getattr(saved, name) == getattr(lm, name), name
    with pytest.raises(UserError, match="saved exists already; choose another folder"):
        lm.save(tmp_path / "saved")
    with pytest.raises(UserError, match="holds an imported or saved model"):
        shakegpt_jax.train(run_config, tmp_path / "saved")
    # One that was made in Python, and never saved.
    tokenizer = CharTokenizer.from_text("abc")
    config = Config(model=dataclasses.replace(lm.config.model)).freeze()
    model = GPT(config.model, 3)
    params = model.init(jax.random.key(0), np.zeros((1, 1), int))["params"]
    shakegpt_jax.LanguageModel(model, params, tokenizer, config, "").save(str(tmp_path / "new"))
    assert shakegpt_jax.load(tmp_path / "new").tokenizer == tokenizer


CELLS = [
    "import shakegpt_jax\nconfig = shakegpt_jax.load_config('cpu')",
    "config.model.n_layer, config.model.n_embd, config.train.num_steps = 1, 16, 600\n"
    "config.train.steps_per_dispatch, config.train.eval_every = 1, 100\n"
    "config.train.eval_characters, config.train.sample_length = 1_000, 20",
    "result = shakegpt_jax.train(config, 'run')",
]


@pytest.mark.slow
def test_a_notebook_shows_lines_and_one_picture(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, CELLS)))
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    outputs = notebook.cells[-1].outputs
    assert sum("image/png" in each.get("data", {}) for each in outputs) == 1
    assert len(outputs) < 25  # lines, which editors join
    text = "".join(each.get("text", "") for each in outputs)
    assert text.count("validation loss") == 7 and len(text) < 5_000
    assert len(nbformat.writes(notebook)) < 200_000
