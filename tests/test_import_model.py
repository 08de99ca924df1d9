"""Import of nanoGPT's checkpoints and of Hugging Face folders."""

import dataclasses
import json
import os
import pickle
import random
import shutil
import signal
import struct
import sys
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
from safetensors.numpy import load_file, save_file

import shakegpt_jax
from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.writer import CheckpointWriter
from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError
from shakegpt_jax.interop.export_folder import export_folder
from shakegpt_jax.interop.huggingface_import import read_huggingface
from shakegpt_jax.interop.nanogpt import read_nanogpt
from shakegpt_jax.interop.restricted_pickle import load_pickle
from shakegpt_jax.interop.torch_file import open_torch_file
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
        ("plot",): "no curves of new/run: metrics.jsonl is missing, as in an imported run",
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


def test_a_run_folder_that_cannot_be_written_is_not_left_behind(here, command, monkeypatch):
    (here / "file").write_text("mine")
    code, out, err = command("import_model", *NANO, "--workdir", "file/run")
    assert (code, out) == (2, "") and "cannot create the run folder file/run" in one_line(err)

    def fail(checkpoints: CheckpointWriter, step: int, *args: object) -> None:
        checkpoints._handle_failure(step, OSError("no space"))

    monkeypatch.setattr(CheckpointWriter, "save", fail)
    code, out, err = command("import_model", *NANO, "--workdir", "run")
    assert (code, out) == (1, "") and "could not save the checkpoint of step 250" in one_line(err)
    assert not (here / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_half_of_a_run(here, command, monkeypatch, number):
    save = CheckpointWriter.save

    def interrupted(*args: Any) -> None:
        os.kill(os.getpid(), number)
        save(*args)

    monkeypatch.setattr(CheckpointWriter, "save", interrupted)
    assert command("import_model", *NANO, "--workdir", RUN) == (128 + number, "", "")
    assert shakegpt_jax.load(RUN).checkpoint == RUN / "checkpoints" / "250"


def test_errors_of_others_are_not_taken_for_a_corrupt_file(here):
    with pytest.raises(EOFError, match="mine"), open_torch_file("ckpt.pt"):
        raise EOFError("mine")


class Malicious:
    """Unpickled as usual, it writes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('executed', 'w').close()",)


DOUBLED = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))
ORDERED = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
PICKLES = {
    "a function": (
        pickle.dumps(Malicious(), 2),
        "asks for '__builtin__.exec', which",
    ),
    "protocol 0": (pickle.dumps(Malicious(), 0), "asks for '__builtin__.exec'"),
    "protocol 4": (pickle.dumps(Malicious(), 4), "uses STACK_GLOBAL"),
    "protocol 5": (pickle.dumps({"a": [Malicious()]}, 5), "uses STACK_GLOBAL"),
    "a dotted name": (b"ctorch._utils\nos.system\n(X\x02\0\0\0lstR.", "'torch._utils.os.system'"),
    "a near name": (b"ctorch\nload\n.", "asks for 'torch.load'"),
    "an instance": (b"(cos\nsystem\nX\x02\0\0\0lso.", "asks for 'os.system'"),
    "an instance of data": (b"(X\x02\0\0\0lso.", "uses OBJ"),
    "an entry of text": (b"Np0\n.", "uses PUT"),
    "a shortcut": (b"(X\x02\0\0\0lsios\nsystem\n.", "uses INST"),
    "an extension": (b"\x82\x01.", "uses EXT1"),
    "attributes of a function": (REBUILD + b"N}X\x01\0\0\0aNs\x86b(tR.", "sets attributes"),
    "attributes of a type": (b"ccollections\nOrderedDict\nN}X\x01\0\0\0aNs\x86b.", "sets attr"),
    "a key that overflows the stack": (b"})" + 200_000 * b"\x85" + b"Ns.", "key of type tuple"),
    "a key that takes years to hash": (b"}" + DOUBLED + b"Ns.", "a key of type tuple"),
    "such keys, as torch.save sets them": (b"}(" + DOUBLED + b"Nu.", "a key of type tuple"),
    "such a key in a call": (
        b"ccollections\nOrderedDict\n]" + DOUBLED + b"N\x86a\x85R.",
        "corrupt",
    ),
    "keys with the same hash": (b"}\x8a\x08" + b"\xff" * 7 + b"\x1fNs.", "key of type int"),
    "items of a list": (b"]K\0Ns.", "changes what is not a dict"),
    "a call with more arguments": (REBUILD + b"(NNNNNNNNtR.", "corrupt"),
    "a call of data": (b"X\x01\0\0\0a)R.", "corrupt"),
    "a tensor of nothing": (REBUILD + b")R.", "corrupt"),
    "a text of 4 GB": (b"X\xff\xff\xff\xffabc.", "corrupt"),
    "a number of 2 GB": (b"\x8b\xff\xff\xff\x7fabc.", "uses LONG4"),
    "4 billion slots": (b"Nr\xff\xff\xff\xff.", "is not a checkpoint"),
    "bytes of 2**62": (b"\x96\0\0\0\0\0\0\0\x40.", "uses BYTEARRAY8"),
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
    "stoi and itos contradict": {"itos": {0: "a", 1: "b"}, "stoi": {"a": 1, "b": 0}},
    "stoi and itos contradict each": {"itos": {0: "a"}, "stoi": {"a": 0, "b": 1}},
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


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory) -> Path:
    """An export of a run. Do not change it."""
    folder = tmp_path_factory.mktemp("exported") / "hf"
    export_folder(shakegpt_jax.load(finished), str(folder))
    return folder


@pytest.fixture
def hf(exported: Path, here: Path) -> Path:
    """An export to change."""
    return Path(shutil.copytree(exported, here / "hf"))


def change_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_an_export_comes_back_bit_for_bit(hf, finished, command):
    code, out, err = command("import_model", hf, "--workdir", RUN)
    assert (code, err) == (0, "")
    assert "an export of step 12" in out and "--split val --path text.txt\n" in out
    ours, theirs = shakegpt_jax.load(RUN), shakegpt_jax.load(finished)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    ours, theirs = CheckpointReader(RUN), CheckpointReader(finished)
    assert ours.steps == [12]
    text = {"data.path": "text.txt"}  # without its folder
    expected = theirs.run_metadata(12)
    assert ours.run_metadata(12) == dataclasses.replace(
        expected, config=expected.config.replace(text)
    )
    assert ours.metrics(12) == theirs.metrics(12)
    code, out, err = command("train", "--workdir", RUN)
    assert code == 2 and "without an optimizer state" in one_line(err)


@pytest.mark.parametrize("step", [0, -1, True, 1.5, "12", 2**31])
def test_a_step_that_no_checkpoint_has_is_refused(hf, refused, step):
    change_json(hf / "config.json", replaced(step, "shakegpt_jax", "step"))
    assert f"in shakegpt_jax, step is {step!r}; it must be a whole number from 1" in refused(hf)


def test_an_export_of_strangers_can_name_no_file_of_the_user(hf, command):
    for field in ("path", "init_from"):
        section = "data" if field == "path" else "train"
        change = replaced("/etc/\x1b]0;mine\x07passwd", "shakegpt_jax", "config", section, field)
        change_json(hf / "config.json", change)
    code, out, err = command("import_model", hf, "--workdir", RUN)
    assert (code, err) == (0, "") and "/etc" not in out
    assert "--path '\\x1b]0;mine\\x07passwd'\n" in out
    config = shakegpt_jax.load(RUN).config
    assert config.data.path == config.train.init_from == "\x1b]0;mine\x07passwd"
    code, out, err = command("evaluate", "--workdir", RUN)
    assert (code, out) == (2, "")
    assert one_line(err).startswith(r"error: no such file: \x1b]0;mine\x07passwd; ")


def test_plots_leave_out_imported_runs_and_say_so(here, finished, command):
    assert command("import_model", *NANO, "--workdir", RUN)[0] == 0
    line = f"no curves of {RUN}: metrics.jsonl is missing, as in an imported run\n"
    code, out, err = command("plot", RUN, finished, "--output", "x.png")
    assert (code, out, err) == (0, "x.png\n", line)
    code, out, err = command("plot", RUN, "--tensorboard")
    assert (code, out, err) == (2, "", f"error: {line}")


def test_an_imported_model_is_exported_and_comes_back(here, command):
    assert command("import_model", *NANO, "--workdir", RUN)[0] == 0
    assert command("export", "--workdir", RUN, "--output", "hf")[0] == 0
    assert json.loads((here / "hf" / "config.json").read_text())["activation_function"] == "gelu"
    card = (here / "hf" / "README.md").read_text()
    assert "| training steps | 250 |\n" in card and "| training text | unknown |\n" in card
    assert "Tiny Shakespeare" not in card
    assert shakegpt_jax.load(RUN).config.train.num_steps == 250
    assert command("import_model", "hf", "--workdir", "again")[0] == 0
    first, again = shakegpt_jax.load(RUN), shakegpt_jax.load("again")
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    assert (first.config, first.text_sha256) == (again.config, again.text_sha256)


def test_only_folders_need_safetensors(hf, here, command, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "this needs safetensors: pip install -e '.[hf]'" in refused(hf)
    assert command("import_model", *NANO, "--workdir", RUN)[0] == 0


def test_weights_that_have_changed_lose_their_metrics_and_their_text(hf, command):
    weights = load_file(hf / "model.safetensors")
    weights["transformer.wpe.weight"] += 1
    save_file(weights, hf / "model.safetensors", {"format": "pt"})
    code, out, _ = command("import_model", hf, "--workdir", RUN)
    assert code == 0 and "which has changed since its export" in out
    assert command("export", "--workdir", RUN, "--output", "out")[0] == 0
    assert "training steps" not in Path("out", "README.md").read_text()
    lm = shakegpt_jax.load(RUN)
    assert (lm.text_sha256, CheckpointReader(RUN).metrics(1)) == ("", {})
    np.testing.assert_array_equal(
        lm.params["wpe"]["embedding"], weights["transformer.wpe.weight"], strict=True
    )


@pytest.mark.parametrize(("name", "dtype"), [("F16", "float16"), ("BF16", "bfloat16")])
def test_half_precision_of_a_folder_is_read_exactly(hf, name, dtype):
    weights = load_file(hf / "model.safetensors")
    half = {key: value.astype(jax.numpy.dtype(dtype)) for key, value in weights.items()}
    save_file(half, hf / "model.safetensors")
    assert f'"dtype":"{name}"'.encode() in (hf / "model.safetensors").read_bytes()
    found = read_huggingface(str(hf)).params
    np.testing.assert_array_equal(
        found["wpe"]["embedding"], half["transformer.wpe.weight"].astype(np.float32), strict=True
    )
    kernel = half["transformer.h.0.attn.c_attn.weight"].astype(np.float32)
    np.testing.assert_array_equal(found["block_0"]["attn"]["c_attn"]["kernel"], kernel)


BIAS = "transformer.h.0.mlp.c_fc.bias"


@pytest.mark.parametrize("dtype", ["I32", "F8_E4M3"])
def test_biases_are_floats_and_masks_may_be_anything(hf, refused, dtype):
    weights = load_file(hf / "model.safetensors")
    mask = {"transformer.h.0.attn.bias": np.ones((1, 1, 8, 8), bool)}
    save_file(weights | mask, hf / "model.safetensors")
    bias = read_huggingface(str(hf)).params["block_0"]["mlp"]["c_fc"]["bias"]
    np.testing.assert_array_equal(bias, weights[BIAS])
    numpy_dtype = {"I32": "int32", "F8_E4M3": "float8_e4m3fn"}[dtype]
    save_file(
        weights | {BIAS: weights[BIAS].astype(jax.numpy.dtype(numpy_dtype))},
        hf / "model.safetensors",
    )
    assert f"{BIAS} is {dtype}; it must be F32 or" in refused(hf)


HF_CONFIGS = {
    "model_type is 'llama'; it must be 'gpt2'": {"model_type": "llama"},
    "activation_function is 'relu'; it must be 'gelu_new' or": {"activation_function": "relu"},
    "n_inner is 32; it must be None or 64": {"n_inner": 32},
    "layer_norm_epsilon is 0.1; it must be 1e-05": {"layer_norm_epsilon": 0.1},
    "scale_attn_by_inverse_layer_idx is True": {"scale_attn_by_inverse_layer_idx": True},
    "scale_attn_weights is False": {"scale_attn_weights": False},
    "add_cross_attention is True": {"add_cross_attention": True},
    "tie_word_embeddings is 'no'": {"tie_word_embeddings": "no"},
    "vocab_size is 50257; it must be": {"vocab_size": 50257},
    "model.n_layer is '1'; it must be": {"n_layer": "1"},
    "n_embd is [16]": {"n_embd": [16]},
    "too short for": {"n_embd": 100_000},
    "lacks transformer.h.1": {"n_layer": 2},
    "wpe.weight has the shape (8, 16); its config needs (9, 16)": {"n_positions": 9},
    "config.json: in shakegpt_jax, its format_version is None": {"shakegpt_jax": ...},
    "its entry shakegpt_jax describes another model": {"n_head": 4},
}


@pytest.mark.parametrize("reason", HF_CONFIGS)
def test_configs_that_mean_another_model_are_refused(hf, reason, refused):
    def change(config: dict[str, Any]) -> None:
        entry = config["shakegpt_jax"]
        if reason.startswith(("too", "lacks", "wpe")):
            del config["shakegpt_jax"]  # as in a model of others
        config.update(HF_CONFIGS[reason])
        if config.get("shakegpt_jax") is ...:
            config["shakegpt_jax"] = {"weights_sha256": entry["weights_sha256"]}

    change_json(hf / "config.json", change)
    assert reason in refused(hf)


TOKENIZERS = {
    "added_tokens is [{'content': '[PAD]'": replaced([{"content": "[PAD]"}], "added_tokens"),
    "normalizer is {'type': 'Lowercase'}": replaced({"type": "Lowercase"}, "normalizer"),
    "post_processor is {'type': 'Temp": replaced(
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[BOS]"}}]},
        "post_processor",
    ),
    "pre_tokenizer is {'type': 'ByteLevel'}": replaced({"type": "ByteLevel"}, "pre_tokenizer"),
    "pre_tokenizer is None": replaced(None, "pre_tokenizer"),
    "pre_tokenizer is {'type': 'Split'": replaced(".", "pre_tokenizer", "pattern", "Regex"),
    "model.type is 'Unigram'": replaced("Unigram", "model", "type"),
    "model.merges is [['t', 'h']]": replaced([["t", "h"]], "model", "merges"),
    "no model with a vocab": replaced([["a", 0.0]], "model", "vocab"),
    "vocab has the token '[UNK]'": replaced(0, "model", "vocab", "[UNK]"),
    "the ids of the vocab are not 0 to": replaced(1, "model", "vocab", "e"),
    "the ids of the vocab are not": replaced("1", "model", "vocab", "e"),
}


@pytest.mark.parametrize("reason", TOKENIZERS)
def test_tokens_that_are_not_characters_are_refused(hf, reason, refused):
    change_json(hf / "tokenizer.json", TOKENIZERS[reason])
    line = refused(hf)
    assert line.startswith("error: ") and "tokenizer.json: " in line and reason in line


def test_incomplete_and_damaged_folders_are_refused(hf, here, refused):
    weights = hf / "model.safetensors"
    whole = weights.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    for damaged in (
        b"",
        whole[:100],
        whole[: len(whole) // 2],
        struct.pack("<Q", 2**62) + whole[8:],
        whole[: 8 + size].replace(b'"F32"', b'"I32"', 1) + whole[8 + size :],
        whole[: 8 + size].replace(b"[16]", b"[61]", 1) + whole[8 + size :],
    ):
        weights.write_bytes(damaged)
        assert "model.safetensors" in refused(hf)
    weights.unlink()
    assert "has no model.safetensors; give a folder" in refused(hf)
    (hf / "pytorch_model.bin").touch()
    assert "pytorch_model.bin could execute code; convert it" in refused(hf)
    (hf / "model.safetensors.index.json").touch()
    assert "join its parts" in refused(hf)
    for name in ("tokenizer.json", "config.json"):
        for content, reason in {
            b"": "is not JSON",
            b"[" * 100_000: "is not JSON",
            b"\xff": "is not JSON",
            b"[1]": "is not a JSON object",
        }.items():
            (hf / name).write_bytes(content)
            line = refused(hf)
            assert name in line and reason in line
        (hf / name).unlink()
        assert f"cannot read hf/{name}" in refused("hf")
    (here / "nothing").mkdir()
    assert "cannot read nothing/config.json" in refused("nothing")


def torch_nanogpt(n_character: int, *, bias: bool) -> Any:
    """Return nanoGPT's model of 2024 in torch, written anew: the reference."""
    import torch
    from torch import nn
    from torch.nn import functional

    class LayerNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(32))
            self.bias = nn.Parameter(torch.zeros(32)) if bias else None

        def forward(self, x):
            return functional.layer_norm(x, (32,), self.weight, self.bias, 1e-5)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c_attn = nn.Linear(32, 96, bias=bias)
            self.c_proj = nn.Linear(32, 32, bias=bias)
            self.register_buffer("bias", torch.tril(torch.ones(16, 16)).view(1, 1, 16, 16))

        def forward(self, x):
            n_row, n_time, _ = x.shape
            parts = self.c_attn(x).split(32, dim=2)
            q, k, v = (part.view(n_row, n_time, 4, 8).transpose(1, 2) for part in parts)
            scores = q @ k.transpose(-2, -1) / 8**0.5
            scores = scores.masked_fill(self.bias[:, :, :n_time, :n_time] == 0, -torch.inf)
            y = scores.softmax(-1) @ v
            return self.c_proj(y.transpose(1, 2).reshape(n_row, n_time, 32))

    class MLP(nn.Sequential):
        def __init__(self) -> None:
            super().__init__()
            self.c_fc = nn.Linear(32, 128, bias=bias)
            self.gelu = nn.GELU()
            self.c_proj = nn.Linear(128, 32, bias=bias)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.attn, self.ln_2, self.mlp = LayerNorm(), Attention(), LayerNorm(), MLP()

        def forward(self, x):
            x = x + self.attn(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))

    class NanoGPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = nn.ModuleDict(
                {
                    "wte": nn.Embedding(n_character, 32),
                    "wpe": nn.Embedding(16, 32),
                    "h": nn.ModuleList([Block() for _ in range(2)]),
                    "ln_f": LayerNorm(),
                }
            )
            self.lm_head = nn.Linear(32, n_character, bias=False)
            self.transformer.wte.weight = self.lm_head.weight

        def forward(self, ids):
            x = self.transformer.wte(ids) + self.transformer.wpe(torch.arange(ids.shape[1]))
            for block in self.transformer.h:
                x = block(x)
            return self.lm_head(self.transformer.ln_f(x))

    torch.manual_seed(0)
    return NanoGPT()


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False])
def test_a_checkpoint_evaluates_to_the_loss_that_torch_computes(
    here, characters, text, text_file, command, bias
):
    torch = pytest.importorskip("torch")
    model = torch_nanogpt(len(characters), bias=bias)
    ids = torch.tensor([characters.index(c) for c in text[: 16 * 1000 + 1]])
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
        "model_args": args | {"bias": bias, "vocab_size": len(characters)},
        "iter_num": 10,
        "best_val_loss": torch.tensor(expected),
        "config": {"dataset": "shakespeare_char", "compile": True},
    }
    torch.save(checkpoint, "ckpt.pt")
    code, out, err = command("import_model", *NANO, "--workdir", RUN)
    assert (code, err) == (0, "") and f"loss is {expected:.4f}" in out
    (here / "windows.txt").write_text(text[: 16 * 1000 + 1])
    _, out, _ = command("evaluate", "--workdir", RUN, "--path", "windows.txt", "--json")
    assert json.loads(out)["loss"] == pytest.approx(expected, abs=2e-6)
    lm = shakegpt_jax.load(RUN)
    prompt = text[100:116]
    logits = model(torch.tensor([[characters.index(c) for c in prompt]]))[0].detach().numpy()
    order = [characters.index(c) for c in lm.tokenizer.vocabulary]
    np.testing.assert_allclose(lm.logits(prompt), logits[:, order], atol=1e-5)

    run = ("--workdir", RUN)
    code, out, _ = command("generate", *run, "--max_new_tokens", 50)
    assert (code, len(out)) == (0, len("O God, O God!") + 51)
    _, out, _ = command("evaluate", *run, "--path", text_file, "--split", "val", "--json")
    assert json.loads(out)["count"] == len(text) // 10 - 1


def make_tokenizer(kind: str, characters: str) -> Any:
    """Return a tokenizer of the library `tokenizers` for single characters."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocab = {character: i for i, character in enumerate(characters)}
    if kind == "BPE":
        return Tokenizer(models.BPE(vocab, []))
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    pattern = {"empty": "", "class": Regex(r"[\s\S]"), "flag": Regex("(?m).")}[kind]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    return tokenizer


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "activation", "tied"),
    [
        ("BPE", "gelu_new", True),
        ("empty", "gelu", True),
        ("class", "gelu_pytorch_tanh", False),
        ("flag", "gelu", False),
    ],
)
def test_a_folder_of_others_has_the_logits_that_transformers_computes(
    here, characters, text, command, kind, activation, tied
):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = make_tokenizer(kind, characters)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.save_pretrained("others")
    config = transformers.GPT2Config(
        vocab_size=len(characters),
        n_positions=32,
        n_embd=24,
        n_layer=2,
        n_head=3,
        activation_function=activation,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained("others")
    code, out, err = command("import_model", "others", "--workdir", RUN)
    assert (code, err) == (0, "") and "Hugging Face transformers" in out
    lm = shakegpt_jax.load(RUN)
    prompt = text[50:82]
    ids = fast(prompt, return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 32)
    logits = model(ids).logits[0].detach().numpy()
    order = [characters.index(c) for c in lm.tokenizer.vocabulary]
    np.testing.assert_allclose(lm.logits(prompt), logits[:, order], atol=2e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_export_that_transformers_saves_again_comes_back(hf, finished, command):
    transformers = pytest.importorskip("transformers")
    transformers.AutoModelForCausalLM.from_pretrained(hf).save_pretrained("saved")
    transformers.AutoTokenizer.from_pretrained(hf).save_pretrained("saved")
    code, _, err = command("import_model", "saved", "--workdir", RUN)
    assert (code, err) == (0, "")
    ours, theirs = shakegpt_jax.load(RUN), shakegpt_jax.load(finished)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert ours.tokenizer == theirs.tokenizer
    assert ours.config.model == theirs.config.model
