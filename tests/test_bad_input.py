"""Invalid input ends in one line that says what is wrong, and nothing is written."""

import ast
import dataclasses
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
from shakegpt_jax.checkpoints import digests
from shakegpt_jax.config import Config
from shakegpt_jax.configs import cpu, load_config
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
    "bom_only.txt": b"\xef\xbb\xbf",
    "other.txt": b"To be, or not to be: " * 20,
    "one.txt": b"a",
    "same.txt": b"a" * 1000,
    "latin1.txt": "café noir".encode("latin-1"),
    "surrogate.txt": b"\xed\xa0\x80",
    "null.txt": b"To be\0or not",
}
HEADER = "from shakegpt_jax.config import Config\n\ndef get_config():\n    config = Config()\n"
CONFIGS = {
    "broken.py": "1 / 0",
    "exit.py": "import sys\nsys.exit(0)",
    "typo.py": HEADER + "    config.model.n_layers = 3\n    return config\n",
    "section.py": HEADER + "    config.model = None\n    return config\n",
    "percent.py": HEADER + "    config.data.path = '50% off.txt'\n    return config\n",
    "other.py": "def get_config():\n    return {}",
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
    "infinite": lambda f: rewrite(f, lambda m: m["metrics"].update(loss=math.inf)),
    "renamed": lambda f: rewrite(f, lambda m: m["config"]["model"].update(eval="1")),
    "emptied": lambda f: shutil.rmtree(f) or f.mkdir(),
}


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return size and time of change of everything in a folder, which writing would alter."""
    states = ((path, path.stat()) for path in folder.rglob("*"))
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in states}


COMMANDS = [
    ("generate", ["--prompt", "naïve ñ"], "'ï' at position 2, 'ñ' at position 6"),
    ("generate", ["--temperature", "nan"], "temperature is nan; it must be a number from 0 to"),
    ("generate", ["--num_samples", "1000000000"], "not a whole number from 1 to 100000"),
    ("generate", ["--num_samples", "2", "--seed", "4294967295"], "plus --num_samples is over"),
    ("generate", ["--step", "7"], "no checkpoint of step 7; there are: [6, 12]"),
    ("generate", ["--step", "newest"], "'newest' is not best, latest or a number"),
    ("generate", ["--step", "4²"], "'4²' is not best, latest or a number"),
    ("generate", ["--prompt_file", "none.txt"], "no such file: none.txt"),
    ("generate", ["--prompt_file", ""], "argument --prompt_file: the name is empty"),
    ("generate", ["--workdir", "a", "--workdir", "b"], "--workdir is given twice"),
    ("generate", ["--workdir", "none"], "no such run folder: none"),
    ("generate", ["--workdir", "own.txt"], "no such run folder: own.txt"),
    ("generate", ["--workdir", "x" * 300], "no such run folder: xxx"),
    ("generate", ["--workdir", "runs"], "(own); give one of them"),
    ("generate", ["--workdir", "empty_run"], "empty_run is not a run folder"),
    ("generate", ["--workdir", "newer"], "its format_version is 99; this shakegpt_jax reads 1"),
    ("generate", ["--workdir", "huge"], "n_layer is 1000000000; it must be a whole number from 1"),
    ("generate", ["--workdir", "wide"], "params does not match its config"),
    ("generate", ["--workdir", "infinite"], "its metrics must map names to finite numbers"),
    ("generate", ["--workdir", "renamed"], "no config field eval; valid fields: n_layer"),
    ("evaluate", ["--workdir", "emptied"], "6/SHA256SUMS is missing"),
    ("evaluate", ["--stride", "17"], "stride is 17; it must be from 1 to 8"),
    ("evaluate", ["--split", "val", "--path", "other.txt"], "other.txt is not the text that the"),
    ("evaluate", ["--path", "/dev/zero"], "/dev/zero is not a regular file"),
    ("evaluate", ["--path", "~nobody_here/x"], "no such file: ~nobody_here/x"),
    ("evaluate", ["--path", "x" * 300], "cannot read xxx"),
    ("evaluate", ["--path", "bom_only.txt"], "bom_only.txt is empty"),
    ("evaluate", ["--path", "one.txt"], "the text's length is 1; it must be 2 or more"),
    ("evaluate", ["--path", "surrogate.txt"], "surrogate.txt is not UTF-8"),
    ("evaluate", ["--path", "null.txt"], r"'\x00' at position 5"),
    ("plot", ["--output", "folder"], "cannot write the plot folder: give a file"),
    ("plot", ["--output", "none/a.png"], "cannot write the plot none/a.png: no such folder: none"),
    ("benchmark", ["--sample_batch", "0"], "--sample_batch: '0' is not a whole number from 1 to"),
    (
        "benchmark",
        ["--scaling", "--plot", "none/a.png"],
        "cannot write the plot none/a.png: no such folder",
    ),
    ("benchmark", ["--scaling", "--sample_batch=1"], "--scaling cannot be combined with"),
    ("benchmark", ["--plot=a.png"], "--plot requires --scaling"),
    ("serve", ["--port", "65536"], "--port: '65536' is not a whole number from 0 to 65535"),
    ("serve", ["--host", "http://x"], "'http://x' is not a host; give a name or an address"),
    ("serve", ["--host", "203.0.113.1"], "cannot listen on --host 203.0.113.1 --port 8000: "),
    ("serve", ["--allow_origin", "*"], "--allow_origin is '*'; it must be like"),
    # What a misspelt option may mean.
    ("generate", ["--tempertaure", "1"], "no option --tempertaure; did you mean --temperature?"),
    ("generate", ["--temp", "1"], "no option --temp; did you mean --temperature?"),
    ("serve", ["own"], "unexpected argument 'own'; a value follows an option, as in --workdir RUN"),
    ("train", ["cpu"], "unexpected argument 'cpu'; a value follows an option, as in --config cpu"),
    ("train", ["--worksdir=x"], "no option --worksdir; did you mean --workdir?"),
    ("train", ["--lr", "1"], "did you mean --config.optimizer.learning_rate?"),
    (
        "train",
        ["--config.lr=1"],
        "no option --config.lr; did you mean --config.optimizer.learning_rate?",
    ),
    ("__main__", ["trian"], "no command 'trian'; did you mean train?"),
    ("__main__", ["x"], "no command 'x'; there are train, generate, "),
    ("__main__", ["import-model"], "the following arguments are required: SOURCE"),
    # Dashes.
    ("generate", ["--num-samples=0"], "--num_samples: '0' is not a whole number from 1"),
    ("train", ["--config.train.num-steps", "0"], "config.train.num_steps is 0; it must be a whole"),
    ("train", ["--config.data.path=a-b--c=d"], "no such file: a-b--c=d"),
    # Configs.
    (
        "train",
        ["--config=folder"],
        "the config 'folder' is not a Python file; give a Python file or",
    ),
    ("train", ["--config=own.txt"], "the config 'own.txt' is not a Python file"),
    ("train", ["--config=none"], "the config 'none' does not exist; give a Python file or one of"),
    ("train", ["--config=typo"], "the config 'typo' does not exist; did you mean typo.py?"),
    ("train", ["--config", "configs/cpu.py"], "the config 'configs/cpu.py' does not exist; give"),
    ("train", ["--config="], "the config '' is not a Python file"),
    ("train", ["--config=typo.py"], "cannot load the config typo.py: UserError: no config field n"),
    ("train", ["--config=exit.py"], "cannot load the config exit.py: SystemExit"),
    ("train", ["--config=broken.py"], "cannot load the config broken.py: ZeroDivisionError"),
    (
        "train",
        ["--config=other.py"],
        "the config other.py must define get_config(), which returns a shakegpt_jax.config.Config",
    ),
    ("train", ["--config=number.py"], "the config number.py must define get_config()"),
    ("train", ["--config=section.py"], "the config section.py must define get_config(), which"),
    # Texts and folders to train in.
    ("train", ["--config.data.path=folder"], "is a folder"),
    ("train", ["--config.data.path=latin1.txt"], "not UTF-8: invalid continuation byte at byte 3"),
    ("train", ["--config.data.path=null.txt"], "a window of 64 and its target need 65"),
    ("train", ["--config.data.path=same.txt"], "repeats one character"),
    ("train", ["--workdir=same.txt"], "cannot write to the run folder same.txt"),
]


@pytest.mark.parametrize(("module", "args", "message"), COMMANDS)
def test_commands_refuse_invalid_input(folder, module, args, message, command, monkeypatch):
    monkeypatch.chdir(folder)
    before = state(folder)
    code, out, err = command(module, *args)
    assert (code, out) == (2, "")
    assert message in one_line(err)
    assert state(folder) == before


API = [
    (lambda lm: lm.generate(""), "prompt is ''; it must be one character or more"),
    (lambda lm: lm.generate([]), "prompt is []; it must be one text or more"),
    (lambda lm: lm.generate(None), "prompt is None; it must be a text or a list of texts"),
    (lambda lm: lm.generate(["a", 5]), "prompt is ['a', 5]; it must be a list of texts"),
    (lambda lm: lm.stream(""), "prompt is ''; it must be one character or more"),
    (lambda lm: lm.generate("a", 2.5), "max_new_tokens is 2.5; it must be a whole number, 1 or"),
    (lambda lm: lm.generate("a", True), "max_new_tokens is True; it must be a whole number"),
    (lambda lm: lm.generate("a", 0), "max_new_tokens is 0; it must be 1 or more"),
    (lambda lm: lm.generate("a", temperature="hot"), "temperature is 'hot'; it must be a number"),
    (lambda lm: lm.generate("a", temperature=-1), "temperature is -1; it must be a number from 0"),
    (lambda lm: lm.generate("a", temperature=10**400), "it must be a number from 0 to"),
    (lambda lm: lm.generate("a", top_k=1.5), "top_k is 1.5; it must be a whole number, 1 or more"),
    (lambda lm: lm.generate("a", top_k=0), "top_k is 0; it must be 1 or more"),
    (lambda lm: lm.generate("a", top_p=0), "top_p is 0; it must be in (0, 1]"),
    (lambda lm: lm.generate("a", top_p=1.5), "top_p is 1.5; it must be in (0, 1]"),
    (lambda lm: lm.generate("a", min_p=-0.1), "min_p is -0.1; it must be in [0, 1]"),
    (lambda lm: lm.generate("a", stop=""), "stop is ''; it must be one character or more"),
    (lambda lm: lm.generate("a", stop=[1]), "stop is [1]; it must be a list of texts"),
    (lambda lm: lm.generate("a", seed=-1), "seed is -1; it must be from 0 to 4294967295"),
    (lambda lm: lm.generate("a", seed="a"), "seed is 'a'; it must be a whole number"),
    (lambda lm: lm.generate("a", seed=[1, 2]), "seed has 2 values; give one, or one per"),
    (lambda lm: lm.generate(["a", "b"], seed=[1, 2**32]), "seed is 4294967296; it must be from 0"),
    (lambda lm: lm.generate("a", window_stride=9), "window_stride is 9; it must be from 1 to 8"),
    (lambda lm: lm.logits(""), "the text's length is 0; it must be 1 or more"),
    (lambda lm: lm.logits("a" * 17, stride=17), "stride is 17; it must be from 1 to 8"),
    (lambda lm: lm.logits(["a", 1]), "text is ['a', 1]; it must be a list of texts"),
    (lambda lm: lm.score("a"), "the text's length is 1; it must be 2 or more"),
    (lambda lm: lm.score(None), "text is None; it must be a text"),
    (lambda lm: lm.evaluate("a\u0301b"), "U+0301 at position 1"),
    (lambda lm: lm.tokenizer.encode("\ud800"), r"'\ud800' at position 0"),
    (lambda lm: lm.tokenizer.decode([-1]), "id -1 is outside the vocabulary's [0, "),
    (
        lambda lm: shakegpt_jax.load("runs/own", step="newest"),
        "step is 'newest'; it must be 'best'",
    ),
    (lambda lm: shakegpt_jax.load("runs/own", step=True), "step is True; it must be a whole num"),
    (lambda lm: shakegpt_jax.load("runs/own", step=3), "no checkpoint of step 3; there are: [6,"),
    (lambda lm: shakegpt_jax.load(7), "workdir is 7; it must be a folder name"),
    (lambda lm: lm.config.replace({"model.n_layer": 0}), "config.model.n_layer is 0"),
    (lambda lm: lm.config.replace({"model.layers": 1}), "no config field layers; valid fields"),
    (
        lambda lm: lm.config.replace({"layers": 1}),
        "has the sections model, data, optimizer, train, mesh, layers; they",
    ),
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
    for value in [*INVALID, 0, -1, 1, 2**31, 0.5, -0.5, 1.5, 1e300, "", "x", "\0", True]:
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

    `nanogpt` reads pickles as plain data: see test_import_nanogpt.py.
    """
    package = Path(shakegpt_jax.__file__).parent
    forbidden = {"pickle", "cPickle", "dill", "marshal", "shelve", "eval", "exec", "compile"}
    reader = package / "interop" / "nanogpt.py"
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


def test_loading_a_config_leaves_no_bytecode_behind(folder, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (folder / "good.py").write_text(Path(cpu.__file__).read_text())
    before = sorted(folder.iterdir())
    assert load_config(str(folder / "good.py")) == cpu.get_config()
    assert sorted(folder.iterdir()) == before


def test_help_shows_a_percent_sign(folder, command):
    code, out, _ = command("train", "--config", folder / "percent.py", "--help")
    assert code == 0
    assert "('50% off.txt')" in out
