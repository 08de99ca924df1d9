"""Import of nanoGPT's checkpoints and of Hugging Face folders."""

import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import jax
import nanogpt_checkpoints as nano
import numpy as np
import pytest
from fakes import one_line
from hypothesis import given, settings
from hypothesis import strategies as st

import shakegpt_jax
from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError
from shakegpt_jax.interop.nanogpt import read_nanogpt
from shakegpt_jax.interop.restricted_pickle import load_pickle
from shakegpt_jax.model.gpt import GPT, init_params

ARGS = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "dropout": 0.1, "bias": True}
RUN = Path("new", "run")


def random_params(n_character: int) -> Any:
    """Return random parameters of a model with the shape of ARGS, biases and scales too."""
    rng = np.random.default_rng(0)
    shape = {f"model.{name}": ARGS[name] for name in ("n_layer", "n_head", "n_embd", "block_size")}
    model = GPT(Config().replace(shape).model, n_character)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def characters(text: str) -> str:
    """The vocabulary, in an order of nanoGPT's own."""
    return "".join(random.Random(0).sample(sorted(set(text)), len(set(text))))


@pytest.fixture(scope="module")
def params(characters: str) -> Any:
    """The parameters in the order of `characters`; the head is not tied. Do not change them."""
    return random_params(len(characters))


@pytest.fixture
def content(params, characters: str) -> dict[str, Any]:
    """What a checkpoint holds; change it and write it."""
    state = nano.state_dict(params, ARGS["n_layer"])
    return {
        "model": state,
        "optimizer": {"state": {0: {"exp_avg": state["_orig_mod.lm_head.weight"]}}},
        "model_args": ARGS | {"vocab_size": len(characters)},
        "iter_num": 250,
        "best_val_loss": np.array(2.5, np.float32),
        "config": {"dataset": "shakespeare_char", "compile": False, "weight_decay": 0.1},
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch, content, characters) -> Path:
    """A working folder with a checkpoint and its characters."""
    monkeypatch.chdir(tmp_path)
    nano.write_checkpoint(tmp_path / "ckpt.pt", content)
    nano.write_meta(tmp_path / "meta.pkl", characters)
    return tmp_path


@pytest.fixture
def refused(here, command):
    """Imports what must be refused, checks that nothing is written, and returns the line."""

    def run(*args: object) -> str:
        before = sorted(here.rglob("*"))
        code, out, err = command("import_model", *args, "--workdir", RUN)
        assert (code, out) == (2, ""), err
        assert sorted(here.rglob("*")) == before
        assert len(err) < 400
        return one_line(err)

    return run


NANO = ("ckpt.pt", "--meta", "meta.pkl")


def test_a_checkpoint_of_nanogpt_becomes_a_run(here, params, characters, command):
    code, out, err = command("import_model", *NANO, "--workdir", RUN)
    assert (code, err) == (0, "")
    assert "nanoGPT, iteration 250, whose own best validation loss is 2.5000" in out
    lm = shakegpt_jax.load(RUN)
    assert lm.checkpoint == RUN / "checkpoints" / "250"
    assert lm.tokenizer.vocabulary == "".join(sorted(characters))
    assert (lm.text_sha256, lm.config.model.activation) == ("", "gelu_exact")
    assert lm.config.model.dropout == 0.1
    # The source has its own order of characters.
    order = [characters.index(c) for c in lm.tokenizer.vocabulary]
    wte = params["wte"]["embedding"][order]
    expected = params | {"wte": {"embedding": wte}, "lm_head": {"kernel": wte.T}}
    jax.tree.map(np.testing.assert_array_equal, lm.params, expected)


def test_what_an_imported_run_cannot_do_is_said_in_one_line(here, command):
    assert command("import_model", *NANO, "--workdir", RUN)[0] == 0
    for args, reason in {
        ("evaluate",): "training text of an imported model is not known; pass --path FILE",
        ("generate", "--draft"): "drafting needs the training text",
        ("train",): "holds an imported model, without an optimizer state to resume from",
        ("plot",): "has no metrics",
    }.items():
        before = sorted(RUN.rglob("checkpoints/**/*"))
        code, out, err = command(*args, "--workdir", RUN)
        assert (code, out) == (2, "") and reason in one_line(err)
        assert sorted(RUN.rglob("checkpoints/**/*")) == before


def test_a_model_without_biases_has_biases_of_zero(here, params, content):
    content["model"] = nano.state_dict(params, 1, bias=False)
    nano.write_checkpoint(here / "ckpt.pt", content)
    model = read_nanogpt("ckpt.pt", "meta.pkl")
    assert not np.any(model.params["block_0"]["attn"]["c_attn"]["bias"])
    assert not np.any(model.params["ln_f"]["bias"])
    expected = params["block_0"]["mlp"]["c_fc"]["kernel"]
    np.testing.assert_array_equal(model.params["block_0"]["mlp"]["c_fc"]["kernel"], expected)


@pytest.mark.parametrize("dtype", ["<f2", "<u2"])
def test_half_precision_is_read_exactly(here, content, dtype):
    key = "_orig_mod.transformer.wpe.weight"
    values = np.linspace(-2, 2, 128, dtype=np.float32).reshape(8, 16).astype(np.float16)
    bits = values.astype(np.float32).view(np.uint32)
    content["model"][key] = (bits >> 16).astype(np.uint16) if dtype == "<u2" else values
    nano.write_checkpoint(here / "ckpt.pt", content)
    expected = (bits >> 16 << 16).view(np.float32) if dtype == "<u2" else values.astype(np.float32)
    found = read_nanogpt("ckpt.pt", "meta.pkl").params["wpe"]["embedding"]
    np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_exists_is_never_overwritten(here, command, kind):
    RUN.parent.mkdir()
    {
        "file": lambda: RUN.write_text("mine"),
        "folder": lambda: RUN.mkdir(),
        "link": lambda: RUN.symlink_to("nowhere"),
    }[kind]()
    before = sorted(here.rglob("*"))
    code, out, err = command("import_model", *NANO, "--workdir", RUN)
    assert (code, out) == (2, "") and "exists already" in one_line(err)
    assert sorted(here.rglob("*")) == before


class Malicious:
    """Unpickled as usual, it writes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('executed', 'w').close()",)


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
PICKLES = {
    "a function": (
        pickle.dumps(Malicious(), 2),
        "asks for '__builtin__.exec', which",
    ),
    "protocol 0": (pickle.dumps(Malicious(), 0), "uses PUT"),
    "protocol 4": (pickle.dumps(Malicious(), 4), "uses STACK_GLOBAL"),
    "protocol 5": (pickle.dumps({"a": [Malicious()]}, 5), "uses STACK_GLOBAL"),
    "a dotted name": (b"ctorch._utils\nos.system\n(X\x02\0\0\0lstR.", "'torch._utils.os.system'"),
    "a near name": (b"ctorch\nload\n.", "asks for 'torch.load'"),
    "an instance": (b"(cos\nsystem\nX\x02\0\0\0lso.", "uses OBJ"),
    "a shortcut": (b"(X\x02\0\0\0lsios\nsystem\n.", "uses INST"),
    "an extension": (b"\x82\x01.", "uses EXT1"),
    "attributes of a function": (REBUILD + b"N}X\x01\0\0\0aNs\x86b(tR.", "corrupt"),
    "attributes of a type": (b"ccollections\nOrderedDict\nN}X\x01\0\0\0aNs\x86b.", "corrupt"),
    "a call of data": (b"X\x01\0\0\0a)R.", "corrupt"),
    "a tensor of nothing": (REBUILD + b")R.", "corrupt"),
    "a text of 4 GB": (b"X\xff\xff\xff\xffabc.", "corrupt"),
    "a number of 2 GB": (b"\x8b\xff\xff\xff\x7fabc.", "corrupt"),
    "4 billion slots": (b"Nr\xff\xff\xff\xff.", "numbers an object 4,294,967,295"),
    "bytes of 2**62": (b"\x96\0\0\0\0\0\0\0\x40.", "corrupt"),
    "another storage": (b"X\x01\0\0\0aQ.", "corrupt"),
    "the end": (b"}", "corrupt"),
    "nothing": (b"", "corrupt"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_are_not_data_are_refused(here, name, refused):
    pickled, reason = PICKLES[name]
    nano.write_archive(here / "bad.pt", pickled)
    line = refused("bad.pt", "--meta", "meta.pkl")
    assert line.startswith("error: bad.pt is") and reason in line
    (here / "bad.pkl").write_bytes(pickled)
    assert refused("ckpt.pt", "--meta", "bad.pkl").startswith("error: bad.pkl is")


def test_the_malicious_pickle_would_have_executed(here):
    pickle.loads(PICKLES["a function"][0])
    assert (here / "executed").exists()


def test_no_global_is_allowed_in_meta(here, refused):
    (here / "meta.pkl").write_bytes(b"ccollections\nOrderedDict\n)R.")
    assert "asks for 'collections.OrderedDict'" in refused(*NANO)


def replaced(value: Any, *keys: str):
    """Return a change of a checkpoint: one value, at a path of keys."""

    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def removed(*keys: str):
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


WPE = "_orig_mod.transformer.wpe.weight"
NESTED: Any = ()
for _ in range(25):
    NESTED = (NESTED, NESTED)
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
    "wpe.weight is not a tensor": replaced(nano.tensor("0", 128, (-8, -16), (16, 1)), "model", WPE),
}


@pytest.mark.parametrize("reason", CHECKPOINTS)
def test_checkpoints_that_are_no_such_model_are_refused(here, content, reason, refused):
    CHECKPOINTS[reason](content)
    nano.write_checkpoint(here / "ckpt.pt", content)
    assert reason in refused(*NANO)


METAS = {
    "is not a meta.pkl of nanoGPT": [1],
    "has no table `itos`": {"stoi": {"a": 0}},
    "no single character for the id 1": {"itos": {0: "a", 2: "b"}},
    "no single character for the id 0": {"itos": {0: "the"}},
    "itos repeats a character": {"itos": {0: "a", 1: "a"}},
    "tokens and meta.pkl 2 characters": {"itos": {0: "b", 1: "a"}},
}


@pytest.mark.parametrize("reason", METAS)
def test_tables_that_are_no_characters_are_refused(here, reason, refused):
    (here / "meta.pkl").write_bytes(pickle.dumps(METAS[reason]))
    assert reason in refused(*NANO)


def test_files_that_are_no_checkpoint_are_refused(here, refused):
    whole = (here / "ckpt.pt").read_bytes()
    (here / "empty.pt").write_bytes(b"")
    (here / "text.pt").write_bytes(b"To be, or not to be")
    (here / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (here / "tail.pt").write_bytes(whole[len(whole) // 2 :])
    nano.write_archive(here / "bomb.pt", b"\0" * 10**7, compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(here / "other.pt", "w") as archive:
        archive.writestr("notes.txt", "mine")
    os.mkfifo(here / "fifo")
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
    state = nano.state_dict(random_params(3), 1)
    content = {"model": state, "model_args": ARGS | {"vocab_size": 3}, "iter_num": 1}
    path = nano.write_checkpoint(folder / "ckpt.pt", content)
    nano.write_meta(folder / "meta.pkl", "cab")
    return path.read_bytes(), folder, read_nanogpt(str(path), str(folder / "meta.pkl"))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([*b"(.0NKJX}u]aet)RbQqrhjc\x80\x85\x86\x87\x88\x8a\x94"]), max_size=40)
)
def test_random_opcodes_load_or_are_refused(opcodes):
    allowed = {"torch.FloatStorage": "float32"}
    try:
        load_pickle(b"\x80\x02" + bytes(opcodes) + b".", "x", allowed, lambda pid: 1 / 0)
    except UserError as error:
        assert str(error).startswith("x is ") and "\n" not in str(error)
