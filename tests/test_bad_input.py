"""Invalid input ends in one line that says what is wrong, and nothing is written."""

import ast
import dataclasses
import importlib.metadata
import json
import math
import re
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from fakes import one_line
from hypothesis import given, settings
from hypothesis import strategies as st

import shakegpt_jax
from configs import cpu
from shakegpt_jax.checkpoints import digests
from shakegpt_jax.config import Config
from shakegpt_jax.configs import load_config
from shakegpt_jax.data.text import read_text
from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory, finished: Path, text: str) -> Path:
    """Return a working folder with texts and config files of every kind, and valid and bad runs."""
    folder = tmp_path_factory.mktemp("bad_input")
    (folder / "own.txt").write_text(text)
    shutil.copytree(finished, folder / "runs" / "own")
    for name, code in CONFIGS.items():
        (folder / name).write_text(code)
    for name, content in TEXTS.items():
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    (folder / "empty_run").mkdir()
    for name, change in RUNS.items():
        run = folder / name
        shutil.copytree(folder / "runs" / "own", run)
        for step in ("6", "12"):
            change(run / "checkpoints" / step)
    return folder


TEXTS = {
    "empty.txt": b"",
    "bom_only.txt": b"\xef\xbb\xbf",
    "other.txt": b"To be, or not to be: " * 20,
    "one.txt": b"a",
    "same.txt": b"a" * 1000,
    "latin1.txt": "café noir".encode("latin-1"),
    "cut.txt": "caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode()[:-1],
    "binary.txt": bytes(range(256)),
    "utf16.txt": "To be".encode("utf-16"),
    "null.txt": b"To be\0or not",
    "emoji.txt": "To be \N{GRINNING FACE}".encode(),
    "surrogate.txt": b"\xed\xa0\x80",
}


CONFIGS = {
    "broken.py": "1 / 0",
    "exit.py": "import sys\nsys.exit(0)",
    "typo.py": "from shakegpt_jax.config import Config\n\ndef get_config():\n"
    "    config = Config()\n    config.model.n_layers = 3\n    return config\n",
    "other.py": "def get_config():\n    return {}",
    "section.py": "from shakegpt_jax.config import Config\n\ndef get_config():\n"
    "    config = Config()\n    config.model = None\n    return config\n",
    "empty.py": "",
    "number.py": "get_config = 5",
}


def rewrite(folder: Path, change) -> None:
    """Change the metadata and write valid digests."""
    metadata = json.loads((folder / "metadata.json").read_text())
    change(metadata)
    (folder / "metadata.json").write_text(json.dumps(metadata))
    digests.write_digests(folder)


RUNS = {
    "newer": lambda f: rewrite(f, lambda m: m.update(format_version=99)),
    "huge": lambda f: rewrite(f, lambda m: m["config"]["model"].update(n_layer=10**9)),
    "wide": lambda f: rewrite(
        f, lambda m: m["config"]["model"].update(n_embd=100_000, block_size=1_000_000)
    ),
    "deep": lambda f: rewrite(f, lambda m: m["config"]["model"].update(n_layer=3)),
    "infinite": lambda f: rewrite(f, lambda m: m["metrics"].update(loss=math.inf)),
    "renamed": lambda f: rewrite(f, lambda m: m["config"]["model"].update(eval="1")),
    "no_metadata": lambda f: (f / "metadata.json").unlink(),
    "no_params": lambda f: shutil.rmtree(f / "params"),
    "no_manifest": lambda f: (f / "SHA256SUMS").unlink(),
    "emptied": lambda f: shutil.rmtree(f) or f.mkdir(),
    "folder_for_file": lambda f: (f / "metadata.json").unlink() or (f / "metadata.json").mkdir(),
}


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return size and time of change of everything in a folder, which writing would alter."""
    states = ((path, path.stat()) for path in folder.rglob("*"))
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in states}


COMMANDS = [
    ("generate", ["--prompt", "naïve ñ"], "'ï' at position 2, 'ñ' at position 6"),
    ("generate", ["--prompt", "\U0001f600"], "'\U0001f600' at position 0"),
    ("generate", ["--prompt", ""], "prompt is ''; it must be one character or more"),
    ("generate", ["--temperature", "-1"], "temperature is -1.0; it must be a number from 0 to"),
    ("generate", ["--temperature", "nan"], "temperature is nan"),
    ("generate", ["--temperature", "inf"], "temperature is inf"),
    ("generate", ["--temperature", "1e300"], "temperature is 1e+300"),
    ("generate", ["--temperature", ""], "--temperature: invalid float value: ''"),
    ("generate", ["--temperature", "hot"], "--temperature: invalid float value: 'hot'"),
    ("generate", ["--top_k", "0"], "top_k is 0; it must be 1 or more"),
    ("generate", ["--top_k", "-3"], "top_k is -3"),
    ("generate", ["--top_k", "1.5"], "--top_k: invalid int value: '1.5'"),
    ("generate", ["--top_p", "0"], "top_p is 0.0; it must be in (0, 1]"),
    ("generate", ["--top_p", "1.5"], "top_p is 1.5"),
    ("generate", ["--top_p", "nan"], "top_p is nan"),
    ("generate", ["--max_new_tokens", "0"], "max_new_tokens is 0; it must be 1 or more"),
    ("generate", ["--max_new_tokens", "-5"], "max_new_tokens is -5"),
    ("generate", ["--max_new_tokens", "1e3"], "invalid int value: '1e3'"),
    ("generate", ["--num_samples", "0"], "num_samples is 0"),
    ("serve", ["--port", "65536"], "--port is 65536; it must be from 0 to 65535"),
    ("serve", ["--max_batch", "0"], "--max_batch is 0; it must be from 1 to 1024"),
    ("serve", ["--grace", "-1"], "--grace is -1; it must be from 0 to 3600"),
    ("serve", ["--host", "http://x"], "'http://x' is not a host; give a name or an address"),
    ("serve", ["--host", "a..b"], "cannot listen on --host a..b --port 8000: "),
    ("serve", ["--host", "203.0.113.1"], "cannot listen on --host 203.0.113.1 --port 8000: "),
    ("serve", ["--allow_host", "a:80"], "'a:80' is not a host; give a name or an address"),
    ("serve", ["--allow_origin", "x.org"], "'x.org'; it must be like https://example.org or"),
    ("serve", ["--allow_origin", "http://x/y"], "--allow_origin is 'http://x/y'; it must be like"),
    ("serve", ["--allow_origin", "*"], "--allow_origin is '*'; it must be like"),
    ("generate", ["--num_samples", "1000000000"], "it must be from 1 to 100000"),
    ("generate", ["--num_samples", "2", "--seed", "4294967295"], "plus --num_samples is over"),
    ("generate", ["--window_stride", "0"], "window_stride is 0; it must be from 1 to 8"),
    ("generate", ["--window_stride", "17"], "window_stride is 17; it must be from 1 to 8"),
    ("generate", ["--seed", "-1"], "seed is -1; it must be from 0 to 4294967295"),
    ("generate", ["--seed", "4294967296"], "plus --num_samples is over"),
    ("generate", ["--step", "7"], "no checkpoint of step 7; there are: [6, 12]"),
    ("generate", ["--step", "-4"], "'-4' is not best, latest or a number"),
    ("generate", ["--step", "newest"], "'newest' is not best, latest or a number"),
    ("generate", ["--step", "4²"], "'4²' is not best, latest or a number"),
    ("generate", ["--tempertaure", "1"], "unrecognized arguments: --tempertaure"),
    ("generate", ["--temp", "1"], "unrecognized arguments: --temp"),
    ("generate", ["To be"], "unrecognized arguments: To be"),
    ("generate", ["--prompt"], "--prompt: expected one argument"),
    ("generate", ["--prompt", "a", "--prompt_file", "own.txt"], "not allowed with argument"),
    ("generate", ["--prompt_file", "none.txt"], "no such file: none.txt"),
    ("generate", ["--stop", ""], "stop is ''; it must be one character or more"),
    ("generate", ["--workdir", "a", "--workdir", "b"], "--workdir is given twice"),
    ("generate", ["--workdir", "none"], "no such run folder: none"),
    ("generate", ["--workdir", "own.txt"], "no such run folder: own.txt"),
    ("generate", ["--workdir", "x" * 300], "no such run folder: xxx"),
    ("generate", ["--workdir", "runs"], "(own); give one of them"),
    ("generate", ["--workdir", "empty_run"], "empty_run is not a run folder"),
    (
        "generate",
        ["--workdir", "newer"],
        "it has format version 99, and this version reads up to 1",
    ),
    ("generate", ["--workdir", "huge"], "n_layer is 1000000000; it must be a whole number from 1"),
    ("generate", ["--workdir", "wide"], "params does not match its config"),
    ("generate", ["--workdir", "deep"], "params does not match its config"),
    ("generate", ["--workdir", "infinite"], "its metrics must map names to finite numbers"),
    ("generate", ["--workdir", "renamed"], "no config field eval; valid fields: n_layer"),
    (
        "generate",
        ["--workdir", "no_metadata"],
        "is missing; no other checkpoint is intact",
    ),
    ("generate", ["--workdir", "no_params"], "12/params/_METADATA is missing"),
    ("generate", ["--workdir", "no_manifest"], "6/SHA256SUMS is missing"),
    ("generate", ["--workdir", "emptied"], "6/SHA256SUMS is missing"),
    ("generate", ["--workdir", "folder_for_file"], "6/metadata.json is missing"),
    ("evaluate", ["--stride", "0"], "stride is 0; it must be from 1 to 8"),
    ("evaluate", ["--stride", "17"], "stride is 17; it must be from 1 to 8"),
    ("evaluate", ["--stride", "x"], "--stride: invalid int value: 'x'"),
    ("evaluate", ["--split", "test"], "--split: invalid choice: 'test'"),
    ("evaluate", ["--split", "val", "--path", "other.txt"], "other.txt is not the text that the"),
    ("evaluate", ["--workdir", "none"], "no such run folder: none"),
    ("evaluate", ["--workdir", "newer"], "it has format version 99"),
    ("evaluate", ["--workdir", "emptied"], "6/SHA256SUMS is missing"),
    ("evaluate", ["--workdir", ""], "argument --workdir: the name is empty"),
    ("generate", ["--workdir="], "argument --workdir: the name is empty"),
    ("generate", ["--prompt_file", ""], "argument --prompt_file: the name is empty"),
    ("generate", ["--prompt", "a", "--prompt", "b"], "--prompt is given twice"),
    ("evaluate", ["--path", ""], "argument --path: the name is empty"),
    ("evaluate", ["--path", "folder"], "folder is a folder; give a UTF-8 text file"),
    ("evaluate", ["--path", "/dev/zero"], "/dev/zero is not a regular file"),
    ("evaluate", ["--path", "~nobody_here/x"], "Could not determine home directory"),
    ("evaluate", ["--path", "none.txt"], "no such file: none.txt"),
    ("evaluate", ["--path", "x" * 300], "cannot read xxx"),
    ("evaluate", ["--path", "own.txt/x"], "cannot read own.txt/x: Not a directory"),
    ("evaluate", ["--path", "empty.txt"], "empty.txt is empty"),
    ("evaluate", ["--path", "bom_only.txt"], "bom_only.txt is empty"),
    ("evaluate", ["--path", "one.txt"], "the text's length is 1; it must be 2 or more"),
    ("evaluate", ["--path", "latin1.txt"], "latin1.txt is not UTF-8"),
    ("evaluate", ["--path", "cut.txt"], "cut.txt is not UTF-8: unexpected end of data at byte 3"),
    ("evaluate", ["--path", "binary.txt"], "binary.txt is not UTF-8"),
    ("evaluate", ["--path", "utf16.txt"], "utf16.txt is not UTF-8"),
    ("evaluate", ["--path", "surrogate.txt"], "surrogate.txt is not UTF-8"),
    ("evaluate", ["--path", "null.txt"], r"'\x00' at position 5"),
    ("evaluate", ["--path", "emoji.txt"], "'\U0001f600' at position 6"),
    ("plot", ["--workdir", "empty_run"], "empty_run is not a run folder"),
    (
        "plot",
        ["--workdir", "runs", "--output", "folder"],
        "cannot write the plot folder: give a file",
    ),
    (
        "plot",
        ["--workdir", "runs", "--output", "none/a.png"],
        "cannot write the plot none/a.png: no such folder: none",
    ),
    ("benchmark", ["--sample_batch", "0"], "--sample_batch is 0; it must be from 1 to 100000"),
    ("benchmark", ["--sample_batch", "1000000"], "--sample_batch is 1000000; it must be from"),
    ("scaling", ["--plot", "none/a.png"], "cannot write the plot none/a.png: no such folder"),
    ("scaling", ["--plot="], "argument --plot: the name is empty"),
    ("scaling", ["--plot", "a.xyz"], "cannot write the plot a.xyz: the format must be one of"),
    ("scaling", ["--config.data.batch_size=0"], "config.data.batch_size is 0; it must be"),
]


@pytest.mark.parametrize(("module", "args", "message"), COMMANDS)
def test_commands_refuse_invalid_input(folder, module, args, message, command, monkeypatch):
    monkeypatch.chdir(folder)
    before = state(folder)
    code, out, err = command(module, *args)
    assert (code, out) == (2, "")
    assert message in one_line(err)
    assert state(folder) == before


TRAIN = [
    (["--config.data.path=none.txt"], "no such file: none.txt"),
    (["--config.data.path=folder"], "is a folder"),
    (["--config.data.path=latin1.txt"], "not UTF-8: invalid continuation byte at byte 3 (0xe9)"),
    (["--config.data.path=empty.txt"], "is empty"),
    (["--config.data.path=null.txt"], "a window of 64 and its target need 65"),
    (["--config.data.path=same.txt"], "repeats one character"),
    (["--config.model.n_head=3"], "config.model.n_embd is 128; it must be a multiple of"),
    (["--config.model.n_layers=3"], "no config field model.n_layers; did you mean model.n_layer?"),
    (["--config.train.num_steps=many"], "num_steps is 'many'; it must be a whole number from 1"),
    (["--config.train.num_steps=1e3"], "num_steps is '1e3'; it must be a whole number"),
    (["--config.train.num_steps=0"], "config.train.num_steps is 0; it must be a whole number"),
    (["--config.optimizer.eps=tiny"], "optimizer.eps is 'tiny'; it must be above 0"),
    (["--config.optimizer.decay=step"], "optimizer.decay is 'step'; it must be one of cosine,"),
    (["--config=none.py"], "no such file: 'none.py'; give a config file such as"),
    (["--config=folder"], "'folder' is a folder; give a config file such as"),
    (["--config", "none.py"], "no such file: 'none.py'; give a config file such as"),
    (["--config"], "argument --config: expected one argument"),
    (["--config="], "--config is empty; give a config file such as"),
    (["--config=typo.py"], "cannot load the config typo.py: UserError: no config field n_layers"),
    (["--config=exit.py"], "cannot load the config exit.py: SystemExit"),
    (["--config=broken.py"], "cannot load the config broken.py: ZeroDivisionError"),
    (["--config=other.py"], "get_config() of other.py must return a shakegpt_jax.config.Config"),
    (["--config=empty.py"], "the config empty.py does not define get_config()"),
    (["--config=own.txt"], "the config own.txt does not end in .py; give one"),
    (["--worksdir=x"], "unrecognized argument '--worksdir=x'"),
    (["--workdir", "a", "--workdir", "b"], "--workdir is given twice"),
    (["--workdir="], "argument --workdir: the name is empty"),
    (["--workdir=same.txt"], "cannot write to the run folder same.txt"),
    (["positional"], "unrecognized argument 'positional'"),
    (["--config=section.py"], "config.model of section.py is None; it must be of type ModelConfig"),
    (["--config=number.py"], "the config number.py does not define get_config()"),
]


@pytest.mark.parametrize(("args", "message"), TRAIN)
def test_training_refuses_invalid_input(folder, args, message, command, monkeypatch):
    monkeypatch.chdir(folder)
    before = state(folder)
    code, out, err = command("train", *args)
    assert (code, out) == (2, "")
    assert message in one_line(err)
    assert state(folder) == before


API = [
    (lambda lm: lm.generate(""), "prompt is ''; it must be one character or more"),
    (lambda lm: lm.generate([]), "prompts is []; it must be one text or more"),
    (lambda lm: lm.generate(["a", ""]), "prompt is ''"),
    (lambda lm: lm.generate(None), "prompt is None; it must be a text or a list of texts"),
    (lambda lm: lm.generate(b"To be"), "prompt is b'To be'; it must be a text"),
    (lambda lm: lm.generate(["a", 5]), "prompts is ['a', 5]; it must be a list of texts"),
    (lambda lm: lm.stream("To be"), "prompts is 'To be'; it must be a list of texts"),
    (lambda lm: lm.generate("a", 2.5), "max_new_tokens is 2.5; it must be a whole number, 1 or"),
    (lambda lm: lm.generate("a", True), "max_new_tokens is True; it must be a whole number"),
    (lambda lm: lm.generate("a", "5"), "max_new_tokens is '5'; it must be a whole number"),
    (lambda lm: lm.generate("a", temperature="hot"), "temperature is 'hot'; it must be a number"),
    (lambda lm: lm.generate("a", temperature=None), "temperature is None; it must be a number"),
    (lambda lm: lm.generate("a", temperature=10**400), "it must be a number from 0 to"),
    (lambda lm: lm.generate("a", stop=""), "stop is ''; it must be one character or more"),
    (lambda lm: lm.logits(5), "text is 5; it must be a text or a list of texts"),
    (lambda lm: lm.generate("a", top_k=1.5), "top_k is 1.5; it must be a whole number, 1 or more"),
    (lambda lm: lm.generate("a", top_k=False), "top_k is False; it must be a whole number"),
    (lambda lm: lm.generate("a", top_p="all"), "top_p is 'all'; it must be in (0, 1]"),
    (lambda lm: lm.generate("a", seed=1.5), "seed is 1.5; it must be a whole number"),
    (lambda lm: lm.generate("a", seed="a"), "seed is 'a'; it must be a whole number"),
    (
        lambda lm: lm.generate("a", seed=[1, 2]),
        "seed has 2 values; give one, or one per",
    ),
    (lambda lm: lm.generate(["a", "b"], seed=[1, 2**32]), "seed is 4294967296; it must be from 0"),
    (lambda lm: lm.generate("a", window_stride=2.0), "window_stride is 2.0; it must be a whole"),
    (lambda lm: lm.logits(""), "the text's length is 0; it must be 1 or more"),
    (lambda lm: lm.logits("a" * 17, stride=17), "stride is 17; it must be from 1 to 8"),
    (lambda lm: lm.logits(None), "text is None; it must be a text or a list of texts"),
    (lambda lm: lm.logits(["a", 1]), "text is ['a', 1]; it must be a list of texts"),
    (lambda lm: lm.generate("a", stop=[1]), "stop is [1]; it must be a list of texts"),
    (lambda lm: lm.score("a"), "the text's length is 1; it must be 2 or more"),
    (lambda lm: lm.score(None), "text is None; it must be a text"),
    (lambda lm: lm.score("abc", stride=1.5), "stride is 1.5; it must be a whole number"),
    (lambda lm: lm.evaluate("abc", stride=0), "stride is 0; it must be from 1 to 8"),
    (lambda lm: lm.evaluate("a\u0301b"), "U+0301 at position 1"),
    (lambda lm: lm.tokenizer.encode("\ud800"), r"'\ud800' at position 0"),
    (lambda lm: lm.tokenizer.decode([99]), "id 99 is outside the vocabulary's [0, "),
    (lambda lm: lm.tokenizer.decode([-1]), "id -1 is outside the vocabulary's [0, "),
    (
        lambda lm: shakegpt_jax.load("runs/own", step="newest"),
        "step is 'newest'; it must be 'best', 'latest' or a whole number",
    ),
    (lambda lm: lm.stream(None), "prompts is None; it must be a list of texts"),
    (lambda lm: shakegpt_jax.load("runs/own", step=True), "step is True; it must be 'best'"),
    (lambda lm: shakegpt_jax.load("runs/own", step=1.5), "step is 1.5; it must be 'best'"),
    (
        lambda lm: shakegpt_jax.load("runs/own", step=3),
        "no checkpoint of step 3; there are: [6, 12]",
    ),
    (lambda lm: shakegpt_jax.load(7), "workdir is 7; it must be a folder name"),
    (lambda lm: lm.config.replace({"model.n_layer": 0}), "config.model.n_layer is 0"),
    (lambda lm: lm.config.replace({"model.layers": 1}), "no config field layers; valid fields"),
    (lambda lm: lm.config.replace({"layers": 1}), "unknown config section layers"),
    (lambda lm: lm.config.replace({"layers.n": 1}), "unknown config section layers"),
]


@pytest.fixture(scope="module")
def lm(folder) -> shakegpt_jax.LanguageModel:
    return shakegpt_jax.load(folder / "runs" / "own")


@pytest.mark.parametrize(("call", "message"), API)
def test_the_library_refuses_invalid_input(folder, lm, call, message, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=re.escape(message)):
        call(lm)


@pytest.mark.parametrize("scalar", [np.asarray, jnp.asarray, lambda v: np.asarray(v)[()]])
def test_accepts_scalars_of_numpy_and_jax(folder, lm, scalar):
    options = {"temperature": scalar(0.5), "top_k": scalar(3), "top_p": scalar(0.9)}
    expected = lm.generate("a", 4, seed=2, temperature=0.5, top_k=3, top_p=0.9)
    assert lm.generate("a", scalar(4), seed=scalar(2), **options) == expected
    seeds = scalar([2, 2])
    assert lm.generate(["a", "a"], 4, seed=seeds, **options) == [expected] * 2
    assert shakegpt_jax.load(folder / "runs" / "own", step=scalar(6)).checkpoint.name == "6"


FIELDS = [
    (section.name, field.name)
    for section in dataclasses.fields(Config)
    for field in dataclasses.fields(section.default_factory)  # type: ignore[arg-type]
]
INVALID = [None, [], {}, math.nan, math.inf, -math.inf, 10**400, -(10**400), b"1", 1j]


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_config_fields_accept_only_their_type_and_range(section, name):
    default = getattr(getattr(Config(), section), name)
    values = [*INVALID, 0, -1, 1, 2**31, 0.5, -0.5, 1.5, 1e300, "", "x", "\0", True]
    for value in values:
        config = Config()
        setattr(getattr(config, section), name, value)
        try:
            config.freeze()
        except UserError as error:
            assert f"config.{section}." in str(error)
            assert str(error).count("\n") == 0
        else:
            assert value not in INVALID
            assert type(value) is type(default) or (type(default), type(value)) == (float, int)
            json.dumps(config.to_dict(), allow_nan=False)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_reads_any_line_ends_and_byte_order_mark(tmp_path, newline, mark):
    path = tmp_path / "text.txt"
    path.write_bytes(mark + newline.join(["To be \U0001f600", "", "or not"]).encode())
    assert read_text(str(path)) == "To be \U0001f600\n\nor not"


def test_names_an_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.touch()

    def refuse(self, mode):  # a file's mode would not refuse root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        read_text(str(path))


@settings(derandomize=True, deadline=None)
@given(st.text(st.characters(), min_size=1), st.text(st.characters()))
def test_any_text_round_trips_or_is_refused(text, other):
    tokenizer = CharTokenizer.from_text(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    if set(other) <= set(text):
        assert tokenizer.decode(tokenizer.encode(other)) == other
    else:
        with pytest.raises(UserError, match="not in the vocabulary"):
            tokenizer.encode(other)


def test_nothing_in_a_run_folder_is_executed():
    """No pickle, no eval, no exec; the config file, which the user names, is the only Python.

    `restricted_pickle` reads pickles of nanoGPT as data: see test_import_model.py.
    """
    package = Path(shakegpt_jax.__file__).parent
    forbidden = {"pickle", "cPickle", "dill", "marshal", "shelve", "eval", "exec", "compile"}
    reader = package / "interop" / "restricted_pickle.py"
    for path in package.rglob("*.py"):
        banned = forbidden - {"pickle"} if path == reader else forbidden
        for node in ast.walk(ast.parse(path.read_text())):
            names = set()
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").split(".")[0]}
            elif isinstance(node, ast.Name):
                names = {node.id}
            elif isinstance(node, ast.keyword):
                names = {"pickle"} if node.arg == "allow_pickle" else set()
            assert not names & banned, f"{path}:{node.lineno}: {names & banned}"


def test_unstable_libraries_are_capped():
    requirements = importlib.metadata.requires("shakegpt-jax") or []
    (orbax,) = (line for line in requirements if line.startswith("orbax-checkpoint"))
    assert "<" in orbax


def test_loading_a_config_leaves_no_bytecode_behind(folder, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (folder / "good.py").write_text(Path(cpu.__file__).read_text())
    before = sorted(folder.iterdir())
    assert load_config(str(folder / "good.py")) == cpu.get_config()
    assert sorted(folder.iterdir()) == before


def test_help_shows_a_percent_sign(folder, command):
    config = "from shakegpt_jax.config import Config\n\ndef get_config():\n    config = Config()\n"
    config += "    config.data.path = '50% off.txt'\n    return config\n"
    (folder / "percent.py").write_text(config)
    code, out, _ = command("train", "--config", folder / "percent.py", "--help")
    assert code == 0
    assert "('50% off.txt')" in out
