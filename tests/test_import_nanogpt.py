"""Import of nanoGPT's checkpoints."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import jax
import nanogpt_checkpoints as nano
import numpy as np
import pytest
from changes import removed, replaced
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_nanogpt import torch_nanogpt

import shakegpt_jax
from shakegpt_jax.errors import UserError
from shakegpt_jax.interop.nanogpt import read_nanogpt
from shakegpt_jax.interop.torch_file import open_torch_file

RUN = Path("new", "run")
NANO = ("ckpt.pt", "--meta", "meta.pkl")


@pytest.fixture(scope="module")
def params(shuffled: str) -> Any:
    """The parameters in the order of `shuffled`; the head is not tied. Do not change them."""
    return nano.random_params(len(shuffled))


@pytest.fixture
def content(params, shuffled: str) -> dict[str, Any]:
    """What a checkpoint holds; change it and write it."""
    return nano.checkpoint(params, len(shuffled))


def test_a_checkpoint_of_nanogpt_becomes_a_run(nanogpt_files, params, shuffled, command):
    code, out, err = command("import_model", *NANO, "--workdir", RUN)
    assert (code, err) == (0, "")
    assert "nanoGPT, iteration 250, whose own best validation loss is 2.5000" in out
    lm = shakegpt_jax.load(RUN)
    assert lm.checkpoint == RUN / "checkpoints" / "250"
    assert lm.tokenizer.vocabulary == "".join(sorted(shuffled))
    assert (lm.text_sha256, lm.config.model.activation) == ("", "gelu_exact")
    assert lm.config.model.dropout == 0.1
    # The source has its own order of shuffled.
    order = [shuffled.index(c) for c in lm.tokenizer.vocabulary]
    wte = params["wte"]["embedding"][order]
    expected = params | {"wte": {"embedding": wte}, "lm_head": {"kernel": wte.T}}
    jax.tree.map(np.testing.assert_array_equal, lm.params, expected)


def test_a_model_without_biases_has_biases_of_zero(nanogpt_files, params, content):
    content["model"] = nano.state_dict(params, 1, bias=False)
    nano.write_checkpoint(nanogpt_files / "ckpt.pt", content)
    model = read_nanogpt("ckpt.pt", "meta.pkl")
    assert not np.any(model.params["block_0"]["attn"]["c_attn"]["bias"])
    assert not np.any(model.params["ln_f"]["bias"])
    expected = params["block_0"]["mlp"]["c_fc"]["kernel"]
    np.testing.assert_array_equal(model.params["block_0"]["mlp"]["c_fc"]["kernel"], expected)


@pytest.mark.parametrize("dtype", ["<f2", "<u2"])
def test_half_precision_is_read_exactly(nanogpt_files, content, dtype):
    key = "_orig_mod.transformer.wpe.weight"
    values = np.linspace(-2, 2, 128, dtype=np.float32).reshape(8, 16).astype(np.float16)
    bits = values.astype(np.float32).view(np.uint32)
    content["model"][key] = (bits >> 16).astype(np.uint16) if dtype == "<u2" else values
    nano.write_checkpoint(nanogpt_files / "ckpt.pt", content)
    expected = (bits >> 16 << 16).view(np.float32) if dtype == "<u2" else values.astype(np.float32)
    found = read_nanogpt("ckpt.pt", "meta.pkl").params["wpe"]["embedding"]
    np.testing.assert_array_equal(found, expected, strict=True)


def test_errors_of_others_are_not_taken_for_a_corrupt_file(nanogpt_files):
    with pytest.raises(EOFError, match="mine"), open_torch_file("ckpt.pt"):
        raise EOFError("mine")


WPE = "_orig_mod.transformer.wpe.weight"


NESTED = b")" + 200_000 * b"\x85"


CHECKPOINTS = {
    "lacks model or model_args": removed("model_args"),
    "lacks model or": replaced("a text", "model"),
    "model_args lacks n_head": removed("model_args", "n_head"),
    "model_args has no number for n_head": replaced("2", "model_args", "n_head"),
    "model.n_layer is 0; it must be": replaced(0, "model_args", "n_layer"),
    "model.n_head is 3.5; it must be": replaced(3.5, "model_args", "n_head"),
    "n_embd is 16; it must be a multiple": replaced(3, "model_args", "n_head"),
    "has 50304 tokens and meta.pkl": replaced(50304, "model_args", "vocab_size"),
    "too short for 120,": replaced(100_000, "model_args", "n_embd"),
    "lacks transformer.h.1.attn": replaced(2, "model_args", "n_layer"),
    "lacks transformer.wpe.weight": removed("model", WPE),
    "has an unknown transformer.rope": replaced(np.ones(2, "<f4"), "model", "transformer.rope"),
    "'transformer.rope' in its model is not a tensor": replaced(1, "model", "transformer.rope"),
    "wpe.weight has the shape (9, 16); its": replaced(np.ones((9, 16), "<f4"), "model", WPE),
    "wpe.weight has values that are not": replaced(np.full((8, 16), np.nan, "<f4"), "model", WPE),
    "wpe.weight is int64; it must be float": replaced(np.ones((8, 16), "<i8"), "model", WPE),
    "wpe.weight is not a contiguous part": replaced(
        nano.tensor("0", 16, (8, 16), (0, 1)), "model", WPE
    ),
    "wpe.weight is not a contiguous": replaced(
        nano.tensor("0", 2**30, (8, 16), (16, 1), offset=2**30 - 1), "model", WPE
    ),
    "bytes, not 1,073,741,824 x 4": replaced(
        nano.tensor("0", 2**30, (8, 16), (16, 1)), "model", WPE
    ),
    "it lacks data/none": replaced(nano.tensor("none", 128, (8, 16), (16, 1)), "model", WPE),
    "it lacks data/../../meta.pkl": replaced(
        nano.tensor("../../meta.pkl", 128, (8, 16), (16, 1)), "model", WPE
    ),
    "wpe.weight is not a ten": replaced(nano.tensor("0", 128, NESTED, (16, 1)), "model", WPE),
    "model_args has no number for n_layer": replaced(NESTED, "model_args", "n_layer"),
    "wpe.weight is not a tensor": replaced(nano.tensor("0", 128, (-8, -16), (16, 1)), "model", WPE),
}


@pytest.mark.parametrize("reason", CHECKPOINTS)
def test_checkpoints_that_are_no_such_model_are_refused(nanogpt_files, content, reason, refused):
    CHECKPOINTS[reason](content)
    nano.write_checkpoint(nanogpt_files / "ckpt.pt", content)
    assert reason in refused(*NANO)


METAS = {
    "is not a meta.pkl of nanoGPT": [1],
    "has no table `itos`": {"stoi": {"a": 0}},
    "no single character for the id 1": {"itos": {0: "a", 2: "b"}},
    "no single character for the id 0": {"itos": {0: "the"}},
    "itos repeats a character": {"itos": {0: "a", 1: "a"}},
    "stoi and itos contradict": {"itos": {0: "a", 1: "b"}, "stoi": {"a": 1, "b": 0}},
    "stoi and itos contradict each": {"itos": {0: "a"}, "stoi": {"a": 0, "b": 1}},
    "tokens and meta.pkl 2 characters": {"itos": {0: "b", 1: "a"}},
}


@pytest.mark.parametrize("reason", METAS)
def test_tables_that_are_no_characters_are_refused(nanogpt_files, reason, refused):
    (nanogpt_files / "meta.pkl").write_bytes(pickle.dumps(METAS[reason]))
    assert reason in refused(*NANO)


def test_files_that_are_no_checkpoint_are_refused(nanogpt_files, refused):
    whole = (nanogpt_files / "ckpt.pt").read_bytes()
    (nanogpt_files / "empty.pt").write_bytes(b"")
    (nanogpt_files / "text.pt").write_bytes(b"To be, or not to be")
    (nanogpt_files / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (nanogpt_files / "tail.pt").write_bytes(whole[len(whole) // 2 :])
    nano.write_archive(nanogpt_files / "bomb.pt", b"\0" * 10**7, compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(nanogpt_files / "other.pt", "w") as archive:
        archive.writestr("notes.txt", "mine")
    os.mkfifo(nanogpt_files / "fifo")
    for source, reason in {
        "none.pt": "cannot read none.pt: No such file",
        "empty.pt": "not a whole zip archive",
        "text.pt": "not a whole zip archive",
        "cut.pt": "not a whole zip archive",
        "tail.pt": "",
        "bomb.pt": "it claims 10,0",
        "other.pt": "has no data.pkl",
        "fifo": "is not a regular file",
        "a\0b": "null",
        "x" * 300: "File name too long",
    }.items():
        assert reason in refused(source, "--meta", "meta.pkl")
    assert "pass --meta data/shakespeare_char/meta.pkl" in refused("ckpt.pt")
    assert "cannot read none.pkl" in refused("ckpt.pt", "--meta", "none.pkl")
    assert "--meta is for nanoGPT" in refused(".", "--meta", "meta.pkl")


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_damaged_checkpoint_is_read_as_it_was_or_refused(damaged, data):
    original, path, expected = damaged
    raw = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (path / "ckpt.pt").write_bytes(raw[: data.draw(st.integers(len(raw) // 2, len(raw)))])
    try:
        found = read_nanogpt(str(path / "ckpt.pt"), str(path / "meta.pkl"))
    except UserError:
        return
    for ours, theirs in zip(
        jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    state = nano.state_dict(nano.random_params(3), 1)
    content = {"model": state, "model_args": nano.ARGS | {"vocab_size": 3}, "iter_num": 1}
    path = nano.write_checkpoint(folder / "ckpt.pt", content)
    nano.write_meta(folder / "meta.pkl", "cab")
    return path.read_bytes(), folder, read_nanogpt(str(path), str(folder / "meta.pkl"))


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False])
def test_a_checkpoint_evaluates_to_the_loss_that_torch_computes(
    nanogpt_files, shuffled, text, text_file, command, bias
):
    torch = pytest.importorskip("torch")
    model = torch_nanogpt(len(shuffled), bias=bias)
    ids = torch.tensor([shuffled.index(c) for c in text[: 16 * 1000 + 1]])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    compiled = torch.nn.Module()
    compiled._orig_mod = model  # as torch.compile wraps it

    def loss():
        logits = model(ids[:-1].view(-1, 16))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[1:])

    for _ in range(10):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    expected = loss().item()
    args = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "dropout": 0.0}
    checkpoint = {
        "model": compiled.state_dict(),
        "optimizer": optimizer.state_dict(),
        "model_args": args | {"bias": bias, "vocab_size": len(shuffled)},
        "iter_num": 10,
        "best_val_loss": torch.tensor(expected),
        "config": {"dataset": "shakespeare_char", "compile": True},
    }
    torch.save(checkpoint, "ckpt.pt")
    code, out, err = command("import_model", *NANO, "--workdir", RUN)
    assert (code, err) == (0, "") and f"loss is {expected:.4f}" in out
    (nanogpt_files / "windows.txt").write_text(text[: 16 * 1000 + 1])
    _, out, _ = command("evaluate", "--workdir", RUN, "--path", "windows.txt", "--json")
    assert json.loads(out)["loss"] == pytest.approx(expected, abs=2e-6)
    lm = shakegpt_jax.load(RUN)
    prompt = text[100:116]
    logits = model(torch.tensor([[shuffled.index(c) for c in prompt]]))[0].detach().numpy()
    order = [shuffled.index(c) for c in lm.tokenizer.vocabulary]
    np.testing.assert_allclose(lm.logits(prompt), logits[:, order], atol=1e-5)

    run = ("--workdir", RUN)
    code, out, _ = command("generate", *run, "--max_new_tokens", 50)
    assert (code, len(out)) == (0, len("O God, O God!") + 51)
    _, out, _ = command("evaluate", *run, "--path", text_file, "--split", "val", "--json")
    assert json.loads(out)["count"] == len(text) // 10 - 1
