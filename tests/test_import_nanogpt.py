"""Import of nanoGPT's checkpoints: torch writes them and is the reference."""

import json
import os
import pickle
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from changes import removed, replaced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_nanogpt import torch_nanogpt

import shakegpt_jax
from shakegpt_jax.errors import UserError
from shakegpt_jax.interop.nanogpt import read_nanogpt

RUN = Path("new", "run")
NANO = ("ckpt.pt", "--meta", "meta.pkl")
ARGS = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "dropout": 0.1}
WPE = "_orig_mod.transformer.wpe.weight"


class Malicious:
    """Unpickled as usual, it writes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('executed', 'w').close()",)


@pytest.fixture
def files(tmp_path: Path, monkeypatch, shuffled: str) -> Path:
    """A working folder with meta.pkl, and a ckpt.pt to be replaced."""
    monkeypatch.chdir(tmp_path)
    itos = dict(enumerate(shuffled))
    meta = {"vocab_size": len(itos), "itos": itos, "stoi": {c: i for i, c in itos.items()}}
    Path("meta.pkl").write_bytes(pickle.dumps(meta))
    Path("ckpt.pt").touch()
    return tmp_path


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    return pytest.importorskip("torch")


def checkpoint(torch: Any, model: Any, n_character: int, *, bias: bool = True) -> dict[str, Any]:
    """Return what nanoGPT saves of a model that torch.compile has wrapped."""
    compiled = torch.nn.Module()
    compiled._orig_mod = model
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    return {
        "model": compiled.state_dict(),
        "optimizer": optimizer.state_dict(),
        "model_args": ARGS | {"bias": bias, "vocab_size": n_character},
        "iter_num": 250,
        "best_val_loss": torch.tensor(2.5),
        "config": {"dataset": "shakespeare_char", "compile": True},
    }


@pytest.fixture
def content(torch, shuffled: str) -> dict[str, Any]:
    """What a checkpoint holds; change it and save it."""
    return checkpoint(torch, torch_nanogpt(len(shuffled), bias=True), len(shuffled))


METAS = {
    "is not a meta.pkl of nanoGPT": pickle.dumps([1]),
    "has no table `itos`": pickle.dumps({"stoi": {"a": 0}}),
    "itos is {0: 'a', 2: 'b'}; it must": pickle.dumps({"itos": {0: "a", 2: "b"}}),
    "itos is {0: 'the'}; it must map the ids 0 to 0": pickle.dumps({"itos": {0: "the"}}),
    "to different single characters": pickle.dumps({"itos": {0: "a", 1: "a"}}),
    "asks for builtins.exec, which could execute": pickle.dumps(Malicious(), 4),
    "asks for __builtin__.exec": pickle.dumps(Malicious(), 2),
    "asks for collections.OrderedDict": b"ccollections\nOrderedDict\n)R.",
    "cannot read meta.pkl as plain data: Ran out": b"",
    "cannot read meta.pkl as plain data: pickle data was": pickle.dumps("a text")[:-5],
}


@pytest.mark.parametrize("reason", METAS)
def test_tables_that_are_not_plain_data_of_characters_are_refused(files, refused, reason):
    (files / "meta.pkl").write_bytes(METAS[reason])
    assert reason in refused(*NANO)
    assert not (files / "executed").exists()


def test_the_malicious_pickle_would_have_executed(files):
    pickle.loads(pickle.dumps(Malicious()))
    assert (files / "executed").exists()


def test_arguments_that_name_no_checkpoint_are_refused(files, refused):
    os.mkfifo("fifo")
    for source in ("none.pt", "fifo", "a\0b", 300 * "x"):
        assert "no such file or folder: " in refused(source, "--meta", "meta.pkl")
    assert "ckpt.pt takes --meta data/shakespeare_char/meta.pkl" in refused("ckpt.pt")
    assert "cannot read none.pkl" in refused("ckpt.pt", "--meta", "none.pkl")
    assert "a folder takes no --meta" in refused(".", "--meta", "meta.pkl")


def test_without_torch_it_says_what_to_install(files, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    line = refused(*NANO)
    assert "this needs torch: pip install" in line and "[nanogpt]" in line


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False])
def test_a_checkpoint_evaluates_to_the_loss_that_torch_computes(
    files, torch, shuffled, text, text_file, command, bias
):
    model = torch_nanogpt(len(shuffled), bias=bias)
    ids = torch.tensor([shuffled.index(c) for c in text[: 16 * 1000 + 1]])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)

    def loss():
        logits = model(ids[:-1].view(-1, 16))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[1:])

    for _ in range(10):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    expected = loss().item()
    content = checkpoint(torch, model, len(shuffled), bias=bias)
    torch.save(content | {"best_val_loss": torch.tensor(expected)}, "ckpt.pt")
    code, out, err = command("import_model", *NANO, "--workdir", RUN)
    assert (code, err) == (0, "")
    assert f"nanoGPT, iteration 250, whose own best validation loss is {expected:.4f}" in out
    lm = shakegpt_jax.load(RUN)
    assert lm.checkpoint == RUN / "checkpoints" / "250"
    assert lm.tokenizer.vocabulary == "".join(sorted(shuffled))
    assert (lm.text_sha256, lm.config.model.activation) == ("", "gelu_exact")
    assert lm.config.model.bias == bias
    assert (lm.config.model.dropout, lm.config.train.num_steps) == (0.1, 250)
    (files / "windows.txt").write_text(text[: 16 * 1000 + 1])
    _, out, _ = command("evaluate", "--workdir", RUN, "--path", "windows.txt", "--json")
    assert json.loads(out)["loss"] == pytest.approx(expected, abs=2e-6)
    prompt = text[100:116]
    logits = model(torch.tensor([[shuffled.index(c) for c in prompt]]))[0].detach().numpy()
    order = [shuffled.index(c) for c in lm.tokenizer.vocabulary]
    np.testing.assert_allclose(lm.logits(prompt), logits[:, order], atol=1e-5)

    run = ("--workdir", RUN)
    code, out, _ = command("generate", *run, "--max_new_tokens", 50)
    assert (code, len(out)) == (0, len("O God, O God!") + 51)
    _, out, _ = command("evaluate", *run, "--path", text_file, "--split", "val", "--json")
    assert json.loads(out)["count"] == len(text) // 10 - 1
    assert command("export", *run, "--output", "hf")[0] == 0
    assert json.loads(Path("hf", "config.json").read_text())["activation_function"] == "gelu"
    assert "| training steps | 250 |\n" in Path("hf", "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_exactly(files, torch, content, dtype):
    values = torch.linspace(-2, 2, 16 * 32).reshape(16, 32).to(getattr(torch, dtype))
    content["model"][WPE] = values
    torch.save(content, "ckpt.pt")
    found = read_nanogpt("ckpt.pt", "meta.pkl").params["wpe"]["embedding"]
    np.testing.assert_array_equal(found, values.float().numpy(), strict=True)


@pytest.mark.slow
def test_checkpoints_that_are_no_such_model_are_refused(files, torch, shuffled, refused):
    nan = torch.full((16, 32), torch.nan)
    rope = "transformer.rope"
    for reason, change in {
        "lacks model or model_args": removed("model_args"),
        "it lacks model or": replaced("a text", "model"),
        "model_args lacks n_head": removed("model_args", "n_head"),
        "model_args has an unknown rotary": replaced(True, "model_args", "rotary"),
        "model.n_head is '2'; it must be": replaced("2", "model_args", "n_head"),
        "model.n_layer is 0; it must be": replaced(0, "model_args", "n_layer"),
        "n_embd is 32; it must be a multiple": replaced(3, "model_args", "n_head"),
        "has 50304 tokens and meta.pkl": replaced(50304, "model_args", "vocab_size"),
        "its config needs (": replaced(100_000, "model_args", "n_embd"),
        "lacks transformer.h.2.attn": replaced(3, "model_args", "n_layer"),
        "lacks transformer.wpe.weight": removed("model", WPE),
        "has an unknown transformer.rope": replaced(torch.ones(2), "model", rope),
        "transformer.rope is not a tensor of floats": replaced(1, "model", rope),
        "wpe.weight has the shape (9, 32); its": replaced(torch.ones(9, 32), "model", WPE),
        "wpe.weight has values that are not": replaced(nan, "model", WPE),
        "wpe.weight is not a tensor of floats": replaced(nan.long(), "model", WPE),
    }.items():
        content = checkpoint(torch, torch_nanogpt(len(shuffled), bias=True), len(shuffled))
        change(content)
        torch.save(content, "ckpt.pt")
        assert reason in refused(*NANO)


@pytest.mark.slow
def test_files_that_are_no_checkpoint_are_refused(files, torch, content, refused):
    torch.save(content, "ckpt.pt")
    whole = (files / "ckpt.pt").read_bytes()
    Path("empty.pt").touch()
    Path("text.pt").write_text("To be, or not to be")
    Path("cut.pt").write_bytes(whole[: len(whole) // 2])
    torch.save(content, "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"model": Malicious()}, "malicious.pt")
    with zipfile.ZipFile("other.pt", "w") as archive:
        archive.writestr("notes.txt", "mine")
    for name in ("empty", "text", "cut", "old", "malicious", "other"):
        line = refused(f"{name}.pt", "--meta", "meta.pkl")
        assert f"{name}.pt cannot be read as tensors and plain data (" in line
    assert not Path("executed").exists()
    start = whole.index(content["model"][WPE].numpy().tobytes())
    Path("ckpt.pt").write_bytes(whole[:start] + bytes([whole[start] ^ 1]) + whole[start + 1 :])
    assert "ckpt.pt is corrupt: the checksum of ckpt/data/" in refused(*NANO)


@pytest.mark.slow
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_checkpoint_is_read_as_it_was_or_refused(files, torch, content, data):
    torch.save(content, "ckpt.pt")
    expected = read_nanogpt("ckpt.pt", "meta.pkl").params
    raw = bytearray(Path("ckpt.pt").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    Path("damaged.pt").write_bytes(raw[: data.draw(st.integers(len(raw) // 2, len(raw)))])
    try:
        found = read_nanogpt("damaged.pt", "meta.pkl").params
    except UserError:
        return
    jax.tree.map(np.testing.assert_array_equal, found, expected)
