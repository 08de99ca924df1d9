"""The commands as a user types them, on the real text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import shakegpt_jax
from shakegpt_jax import evaluate, generate
from shakegpt_jax.errors import UserError

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "PYTHONDONTWRITEBYTECODE": "1",
}
# ml_collections loads a config file by a deprecated call.
WARNINGS = ["-W", "error::DeprecationWarning", "-W", "ignore:the load_module:DeprecationWarning"]
TINY = [
    "--config.model.n_layer=1",
    "--config.model.n_embd=16",
    "--config.model.n_head=2",
    "--config.model.block_size=16",
    "--config.data.batch_size=4",
    "--config.train.num_steps=20",
    "--config.train.eval_every=10",
    "--config.train.sample_length=20",
]


def command(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python as in a shell, with deprecated calls as errors."""
    return subprocess.run(
        [sys.executable, *WARNINGS, *map(str, args)],
        cwd=cwd,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def train(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return command(ROOT / "run_train.py", f"--config={ROOT}/configs/cpu.py", *TINY, *args, cwd=cwd)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working folder with one run, runs/cpu, trained there by the command."""
    folder = tmp_path_factory.mktemp("user")
    result = train(cwd=folder)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    (folder / "stdout").write_text(result.stdout)
    return folder


@pytest.fixture(scope="module")
def lm(folder) -> shakegpt_jax.LanguageModel:
    return shakegpt_jax.load(folder / "runs" / "cpu")


def assert_refused(result: subprocess.CompletedProcess[str], *messages: str) -> None:
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    for message in messages:
        assert message in result.stderr


def test_training_reports_evaluations_a_sample_and_where_it_is(folder):
    out = (folder / "stdout").read_text()
    assert out.count("validation loss") == 3
    assert out.count("O God, O God!") == 3
    for words in ("best validation loss", "runs/cpu/checkpoints/20", "python -m shakegpt_jax.gen"):
        assert words in out
    lines = (folder / "runs/cpu/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [10, 20]
    assert rows[-1]["val_count"] == 111_539
    assert "20 of 20, after" in out


def test_finished_run_says_so_and_another_config_is_refused(folder):
    result = train(cwd=folder)
    assert result.returncode == 0
    assert "runs/cpu is finished, at step 20 of 20" in result.stdout
    result = train("--config.model.n_layer=2", cwd=folder)
    assert_refused(result, "model.n_layer (saved 1, now 2)")


def test_evaluate_prints_what_training_saw(folder):
    result = command("-m", "shakegpt_jax.evaluate", "--json", cwd=folder)
    assert result.returncode == 0
    assert result.stderr == ""
    figures = json.loads(result.stdout)
    assert figures.pop("checkpoint") == "runs/cpu/checkpoints/20"
    assert set(figures) == {
        "loss",
        "standard_error",
        "perplexity",
        "bits_per_character",
        "count",
    }
    last = json.loads((folder / "runs/cpu/metrics.jsonl").read_text().split("\n")[-2])
    assert figures == pytest.approx({k: last[f"val_{k}"] for k in figures}, rel=1e-6)


def test_evaluate_another_text_with_overlapping_windows(folder, lm):
    text = "To be, or not to be, that is the question:\nWhether 'tis nobler"
    (folder / "hamlet.txt").write_text(text)
    args = ("--path", "hamlet.txt", "--stride", "4", "--workdir", "runs/cpu")
    result = command("-m", "shakegpt_jax.evaluate", *args, cwd=folder)
    assert result.returncode == 0
    assert result.stdout.startswith("checkpoint          runs/cpu/checkpoints/20\n")
    assert f"loss                {lm.evaluate(text, stride=4).loss:.4f}" in result.stdout
    assert f"count               {len(text) - 1}\n" in result.stdout


def test_generate_writes_the_text_and_nothing_else(folder, lm):
    result = command("-m", "shakegpt_jax.generate", "--max_new_tokens", "50", cwd=folder)
    assert result.returncode == 0
    assert result.stdout == lm.generate("O God, O God!", max_new_tokens=50) + "\n"
    assert len(result.stdout) == len("O God, O God!") + 50 + 1
    args = ("--prompt", "ROMEO", "--num_samples", "3", "--seed", "4", "--temperature", "1.1")
    cuts = ("--top_k", "20", "--top_p", "0.9", "--window_stride", "3", "--max_new_tokens", "40")
    result = command("-m", "shakegpt_jax.generate", *args, *cuts, cwd=folder)
    options = {"temperature": 1.1, "top_k": 20, "top_p": 0.9, "window_stride": 3}
    texts = lm.generate(["ROMEO"] * 3, 40, seed=[4, 5, 6], **options)
    assert len(set(texts)) == 3
    assert result.stdout == "\n".join(text + "\n" for text in texts)


def test_generate_streams(folder):
    endless = ["-m", "shakegpt_jax.generate", "--max_new_tokens", "1000000000"]
    process = subprocess.Popen(
        [sys.executable, *endless],
        cwd=folder,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stderr
    assert len(process.stdout.read(500)) == 500
    process.stdout.close()  # as `| head` does
    assert process.stderr.read() == "runs/cpu/checkpoints/20\n"
    assert process.wait(timeout=60) == 0
    process.stderr.close()


def test_training_goes_on_when_its_reader_leaves(tmp_path):
    process = subprocess.Popen(
        [sys.executable, ROOT / "run_train.py", f"--config={ROOT}/configs/cpu.py", *TINY],
        cwd=tmp_path,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 0
    process.stderr.close()
    assert (tmp_path / "runs" / "cpu" / "checkpoints" / "20").is_dir()


def test_library_parts_agree(lm):
    text = "To be, or not"
    logits = lm.logits(text)
    assert logits.shape == (13, 65)
    assert logits.dtype == "float32"
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [log_probs[i, lm.tokenizer.vocabulary.index(c)] for i, c in enumerate(text[1:])]
    assert lm.score(text) == pytest.approx(expected, abs=1e-4)
    assert lm.evaluate(text).loss == pytest.approx(-sum(expected) / 12, rel=1e-5)
    assert lm.evaluate(text).count == 12
    assert lm.generate(text, max_new_tokens=5) == lm.generate([text, "a"], max_new_tokens=5)[0]
    assert "".join(p for (p,) in lm.stream([text], 40)) == lm.generate(text, 40)[len(text) :]
    assert lm.config.model.n_layer == 1
    assert lm.params["block_0"]["mlp"]["c_fc"]["kernel"].shape == (16, 64)


def test_commands_without_a_run_say_how_to_make_one(tmp_path):
    for module in ("generate", "evaluate"):
        result = command("-m", f"shakegpt_jax.{module}", cwd=tmp_path)
        assert_refused(result, "no run found under runs/; train one: python run_train.py")


@pytest.mark.parametrize(
    ("args", "messages"),
    [
        (["--config.data.path=none.txt"], ["no such file: none.txt"]),
        (["--config.data.path=."], ["is a folder"]),
        (["--config.data.path=latin1.txt"], ["not UTF-8", "byte 3 (0xe9)"]),
        (["--config.data.path=empty.txt"], ["is empty"]),
        (["--config.data.path=short.txt"], ["a window of 16 and its target need 17"]),
        (["--config.data.path=same.txt"], ["repeats one character"]),
        (["--config.model.n_head=3"], ["config.model.n_embd is 16; it must be a multiple of"]),
        (
            ["--config.model.n_layers=3"],
            ["no config field model.n_layers; did you mean model.n_layer?"],
        ),
        (
            ["--config.train.num_steps=many"],
            ["num_steps is 'many'; it must be a whole number from 1"],
        ),
        (["--config.train.num_steps=1e3"], ["num_steps is '1e3'; it must be a whole number"]),
        (["--config.optimizer.eps=tiny"], ["optimizer.eps is 'tiny'; it must be above 0"]),
        (["--config=none.py"], ["no such config file: 'none.py'; give one such as"]),
        (["--config=."], ["'.' is a folder; give a config file such as"]),
        (["--config", "none.py"], ["no such config file: 'none.py'; give one such as"]),
        (
            ["--config=typo.py"],
            ["cannot load the config typo.py", "no config field n_layers"],
        ),
        (["--config=exit.py"], ["cannot load the config exit.py: SystemExit"]),
        (["--worksdir=x"], ["Unknown command line flag 'worksdir'"]),
        (["--workdir=same.txt"], ["cannot write to the run folder same.txt"]),
        (["positional"], ["unexpected argument 'positional'"]),
        (["--config=broken.py"], ["cannot load the config broken.py: ZeroDivisionError"]),
        (["--config=other.py"], ["cannot load the config"]),
    ],
)
def test_training_refuses_bad_input_and_writes_nothing(tmp_path, args, messages):
    (tmp_path / "latin1.txt").write_bytes("café noir".encode("latin1"))
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("short text")
    (tmp_path / "same.txt").write_text("a" * 1000)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "exit.py").write_text("import sys\nsys.exit(0)")
    (tmp_path / "typo.py").write_text(
        "from shakegpt_jax.config import Config\n\ndef get_config():\n"
        "    config = Config()\n    config.model.n_layers = 3\n    return config\n"
    )
    (tmp_path / "other.py").write_text("def get_config():\n    return {}")
    before = sorted(tmp_path.iterdir())
    assert_refused(train(*args, cwd=tmp_path), *messages)
    assert sorted(tmp_path.iterdir()) == before


def test_a_config_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "other.py").write_text("def get_config():\n    return {}")
    result = command(ROOT / "run_train.py", "--config=other.py", cwd=tmp_path)
    assert_refused(result, "must return a shakegpt_jax.config.Config")


def test_mistakes_are_told_from_any_folder_without_a_config(tmp_path):
    result = command(ROOT / "run_train.py", "--config.model.foo=3", cwd=tmp_path)
    assert_refused(result, "no config field model.foo")
    result = command(ROOT / "run_train.py", "--config.train.num_steps=0", cwd=tmp_path)
    assert_refused(result, "config.train.num_steps is 0; it must be a whole number from 1")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([str(ROOT / "run_train.py")], ["--workdir", "--config.model.n_layer=12"]),
        (["-m", "shakegpt_jax.generate"], ["--prompt", "--workdir", "O God, O God!"]),
        (["-m", "shakegpt_jax.evaluate"], ["--stride", "--workdir", "--json"]),
    ],
)
def test_help(tmp_path, args, words):
    result = command(*args, "--help", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    for word in words:
        assert word in result.stdout


def test_own_text_is_learned_and_evaluated(tmp_path, monkeypatch, capsys):
    text = "αβγ δε ζη\n" * 200
    (tmp_path / "own.txt").write_text(text)
    result = train("--config.data.path=own.txt", "--workdir=own", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lm = shakegpt_jax.load(tmp_path / "own", step="latest")
    assert lm.tokenizer.vocabulary == "\n αβγδεζη"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate", "--workdir=own", "--json"])
    evaluate.main()
    assert json.loads(capsys.readouterr().out)["count"] == 199
    (tmp_path / "own.txt").write_text(text + "ζ")
    with pytest.raises(UserError, match=r"own.txt is not the text that the model was trained on"):
        evaluate.main()
    monkeypatch.setattr(sys, "argv", ["generate", "--workdir=own"])
    with pytest.raises(UserError, match="cannot spell the default prompt, 'O God, O God!'; give"):
        generate.main()


@pytest.mark.slow
def test_base_config_takes_two_steps_on_a_cpu(tmp_path):
    result = command(
        ROOT / "run_train.py",
        f"--config={ROOT}/configs/base.py",
        "--config.data.batch_size=4",
        "--config.train.num_steps=2",
        "--workdir=run",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "one step takes" in result.stdout
    assert "configs/cpu.py" in result.stdout
    assert "step 2/2: loss" in result.stdout
