"""The commands as a user types them, on the real text."""

import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from fakes import one_line

import shakegpt_jax
from shakegpt_jax.__main__ import COMMANDS
from shakegpt_jax.cli.arguments import ArgumentParser
from shakegpt_jax.cli.command import use_compilation_cache
from shakegpt_jax.configs import cpu
from shakegpt_jax.data.text import TINY_SHAKESPEARE_SHA256
from shakegpt_jax.errors import DivergedError, SaveError, UserError
from shakegpt_jax.inference import evaluation
from shakegpt_jax.profiling.measurements import Measurement
from shakegpt_jax.reporting.terminal import print_table

ROOT = Path(__file__).parent.parent
TINY = [
    "--config.model.n_layer=1",
    "--config.model.n_embd=16",
    "--config.model.n_head=2",
    "--config.model.block_size=16",
    "--config.model.compute_dtype=float32",  # on every CPU
    "--config.data.batch_size=4",
    "--config.train.num_steps=20",
    "--config.train.eval_every=10",
    "--config.train.sample_length=20",
]


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a process under test: this one's, with JAX compiling quickly."""
    changes = {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        **changes,
    }
    return {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"} | changes


def start(*args: str | Path, cwd: Path, **options) -> subprocess.Popen[str]:
    """Start Python as a shell would, with deprecation warnings as errors."""
    return subprocess.Popen(
        [sys.executable, "-W", "error::DeprecationWarning", *map(str, args)],
        cwd=cwd,
        env=options.pop("env", environment()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str, str]:
    with process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()  # the end of the `with` block waits for it
            raise
    return process.returncode, out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a working folder in which the command has trained one run, runs/cpu."""
    folder = tmp_path_factory.mktemp("user")
    process = start("-m", "shakegpt_jax", "train", "--config=cpu", *TINY, cwd=folder)
    code, out, err = finish(process)
    assert (code, err) == (0, "")
    (folder / "stdout").write_text(out)
    return folder


@pytest.fixture
def here(folder, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def lm(folder) -> shakegpt_jax.LanguageModel:
    return shakegpt_jax.load(folder / "runs" / "cpu")


def test_training_reports_evaluations_samples_and_the_result(folder):
    out = (folder / "stdout").read_text()
    assert out.count("validation loss") == 3
    assert out.count("O God, O God!") == 3
    assert "best validation loss" in out and "runs/cpu/checkpoints/20" in out


def test_evaluate_prints_what_training_reported(here, command):
    code, out, err = command("evaluate", "--json")
    assert (code, err) == (0, "")
    figures = json.loads(out)
    assert figures.pop("checkpoint") == "runs/cpu/checkpoints/20"
    assert figures.pop("step") == 20
    assert figures.pop("text") == "the validation split of Tiny Shakespeare"
    assert figures.pop("text_sha256") == TINY_SHAKESPEARE_SHA256
    last = json.loads((here / "runs/cpu/metrics.jsonl").read_text().split("\n")[-2])
    assert figures.pop("train_time") == last["train_time"]
    assert figures.pop("parameters") == 12 * 16**2 + 13 * 16 + (65 + 16 + 2 + 65) * 16
    assert set(figures) == {field.name for field in dataclasses.fields(shakegpt_jax.Evaluation)}
    assert figures == pytest.approx({k: last[f"val_{k}"] for k in figures}, rel=1e-6)


def test_evaluate_another_text_with_overlapping_windows(here, lm, command):
    text = "To be, or not to be, that is the question:\nWhether 'tis nobler"
    (here / "hamlet.txt").write_text(text)
    args = ("--path", "hamlet.txt", "--stride", "4", "--workdir", "runs/cpu")
    code, out, _ = command("evaluate", *args)
    assert code == 0
    assert out.startswith("checkpoint          runs/cpu/checkpoints/20\n")
    assert f"loss                {lm.evaluate(text, stride=4).loss:.4f}" in out
    assert f"count               {len(text) - 1}\n" in out


def test_evaluate_compares_runs_and_lists_the_best_first(here, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shutil.rmtree(here / "more", ignore_errors=True)
    for name in ("a", "b"):
        shutil.copytree(here / "runs" / "cpu", here / "more" / name)
    shutil.rmtree(here / "more" / "a" / "checkpoints" / "20")
    text = "To be, or not to be"
    (here / "line.txt").write_text(text)
    losses = {
        f"more/{name}": shakegpt_jax.load(f"more/{name}").evaluate(text).loss for name in "ab"
    }
    assert losses["more/b"] < losses["more/a"]
    twice = ["--workdir", "more/a", "--workdir", "more/../more/b", "--workdir", "more/b"]
    for args in (["--workdir", "more"], twice, ["more/a", "more/b"]):
        code, out, err = command("evaluate", "--path", "line.txt", *args)
        assert (code, err) == (0, "")
        header, *rows, text_line = out.splitlines()
        assert text_line == "text: line.txt, 18 characters"
        assert header.split()[:2] == ["run", "loss"] and len(header) <= 80
        expected = [[name, f"{losses[f'more/{name}']:.4f}"] for name in "ba"]
        assert [row.split()[:2] for row in rows] == expected
        _, out, _ = command("evaluate", "--path", "line.txt", "--json", *args)
        assert len([json.loads(line) for line in out.splitlines()]) == 2


@pytest.mark.parametrize("columns", ["40", "60", "80"])
def test_tables_are_whole_however_narrow_the_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    rows = [["a/long-name " * 5, "1.2345"], ["b", "2.0"]]
    print_table(["run", "std. error"], rows)
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "std.", "error"]
    assert [line.rsplit(maxsplit=1)[1] for line in lines] == ["1.2345", "2.0"]
    assert lines[0].startswith(rows[0][0])


@pytest.mark.slow
def test_evaluate_compares_the_longest_copies(here, command, monkeypatch):
    monkeypatch.setattr(evaluation, "N_GENERATED", 200)
    for name in ("a", "b"):
        shutil.copytree(here / "runs" / "cpu", here / "copies" / name, dirs_exist_ok=True)
    args = ("evaluate", "--workdir", "copies", "--memorization")
    code, out, _ = command(*args)
    assert code == 0
    header, *rows, _ = out.splitlines()
    assert header.endswith("longest copy  in val. text")
    _, out, _ = command(*args, "--json")
    for row, line in zip(rows, out.splitlines(), strict=True):
        run = json.loads(line)
        expected = [len(run["longest_copy"]), len(run["in_validation_text"])]
        assert [int(cell) for cell in row.split()[-2:]] == expected


def test_evaluate_prints_intact_runs_beside_corrupt_ones(here, command):
    shutil.rmtree(here / "mixed", ignore_errors=True)
    for name in ("bad", "good"):
        shutil.copytree(here / "runs" / "cpu", here / "mixed" / name)
    for folder in (here / "mixed" / "bad" / "checkpoints").iterdir():
        (folder / "metadata.json").unlink()
    code, out, err = command("evaluate", "--workdir", "mixed", "--json")
    assert code == 2
    assert json.loads(out)["checkpoint"] == "mixed/good/checkpoints/20"
    assert err.startswith("error: mixed/bad: ") and err.count("\n") == 1
    shutil.rmtree(here / "mixed" / "good")
    shutil.copytree(here / "mixed" / "bad", here / "mixed" / "worse")
    code, out, err = command("evaluate", "--workdir", "mixed")
    assert (code, out) == (2, "")
    assert "mixed/worse: " in one_line(err)


def test_generate_prints_the_text_and_nothing_else(here, lm, command):
    code, out, err = command("generate", "--max_new_tokens", "50")
    assert (code, err) == (0, "runs/cpu/checkpoints/20\n")
    assert out == lm.generate("O God, O God!", max_new_tokens=50) + "\n"
    assert len(out) == len("O God, O God!") + 50 + 1
    args = ("--prompt", "ROMEO", "--seed", "4", "--temperature", "1.1", "--no_echo")
    cuts = ("--top_k", "20", "--min_p", "0.02", "--window_stride", "3", "--max_new_tokens", "40")
    options = {"temperature": 1.1, "top_k": 20, "min_p": 0.02, "window_stride": 3, "seed": 4}
    text = lm.generate("ROMEO", 40, **options)
    assert command("generate", *args, *cuts)[1] == text.removeprefix("ROMEO") + "\n"


def test_generate_separates_samples(here, lm, command):
    args = ("--prompt", "ROMEO", "--num_samples", "3", "--seed", "4", "--max_new_tokens", "40")
    texts = lm.generate(["ROMEO"] * 3, 40, seed=[4, 5, 6])
    assert len(set(texts)) == 3
    parts = [f"--- sample with seed {4 + i}\n{text}\n" for i, text in enumerate(texts)]
    assert command("generate", *args)[1] == "".join(parts)
    _, out, _ = command("generate", *args, "--json")
    samples = [json.loads(line) for line in out.splitlines()]
    assert [s["prompt"] + s["text"] for s in samples] == texts
    assert [s["seed"] for s in samples] == [4, 5, 6]
    scores = [lm.score(text)[-40:].sum() for text in texts]
    assert [s["log_probability"] for s in samples] == pytest.approx(scores, rel=1e-5)


def test_generate_reads_the_prompt_from_standard_input_or_a_file(here, lm, command, monkeypatch):
    expected = lm.generate("ROMEO:\n", 10) + "\n"
    stdin = io.TextIOWrapper(io.BytesIO(b"ROMEO:\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert command("generate", "--prompt", "-", "--max_new_tokens", "10")[1] == expected
    monkeypatch.setattr(sys, "stdin", None)  # closed
    code, out, err = command("generate", "--prompt", "-")
    assert (code, out) == (2, "")
    assert one_line(err).startswith("error: --prompt is -, but standard input is closed")
    (here / "prompt.txt").write_text("ROMEO:\n")
    args = ("--prompt_file", "prompt.txt", "--max_new_tokens", "10")
    assert command("generate", *args)[1] == expected


def test_generate_ends_at_a_stop_string(here, lm, command):
    text = lm.generate("O God, O God!", 50)
    stop = text[30:33]
    _, out, _ = command("generate", "--max_new_tokens", "50", "--stop", stop, "--stop", "never")
    place = text.index(stop, len("O God, O God!"))
    assert out == text[:place] + "\n"
    assert lm.generate(["O God, O God!"], 50, stop=[stop]) == [text[:place]]
    assert "".join(p for (p,) in lm.stream(["O God, O God!"], 50, stop=[stop])) == text[13:place]


def test_drafts_do_not_change_the_text(here, lm, command):
    args = ("generate", "--max_new_tokens", "100", "--num_samples", "2")
    _, text, _ = command(*args)
    for flag in ("--draft", "--nodraft"):
        assert command(*args, flag)[:2] == (0, text)
    moved = dataclasses.replace(lm, text_sha256="another text")
    assert moved.generate(["O God, O God!"] * 2, 100, seed=[0, 1])[0] in text
    with pytest.raises(UserError, match=r"drafting needs the training text: .* is not the text"):
        moved.generate("A", 10, draft=True)
    with pytest.raises(UserError, match="draft is 3; it must be True, False or None"):
        lm.generate("A", 10, draft=3)


def test_generate_streams(folder):
    process = start("-m", "shakegpt_jax.generate", "--max_new_tokens", "1000000000", cwd=folder)
    assert process.stdout and process.stderr
    assert len(process.stdout.read(500)) == 500
    process.stdout.close()  # as `| head` does
    assert process.stderr.read() == "runs/cpu/checkpoints/20\n"
    assert process.wait(timeout=60) == 0
    process.stderr.close()


def test_logits_scores_and_evaluation_agree(lm):
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
    for stride in (None, 5):  # beyond the window, and in a batch
        short, long = lm.logits([text, text * 3], stride=stride)
        np.testing.assert_array_equal(short, logits)
        log_probs = long - np.log(np.exp(long).sum(-1, keepdims=True))
        ids = lm.tokenizer.encode(text * 3)
        expected = log_probs[np.arange(38), ids[1:]]
        np.testing.assert_allclose(lm.score(text * 3, stride=stride), expected, atol=1e-4)


def test_models_have_a_short_repr_and_compare_by_identity(folder, lm):
    assert len(repr(lm)) < 300
    assert f"{lm.n_params:,} parameters" in repr(lm) and str(lm.checkpoint) in repr(lm)
    assert lm == lm and lm != shakegpt_jax.load(folder / "runs" / "cpu")


def test_commands_without_a_run_say_how_to_train_one(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in ("generate", "evaluate", "plot"):
        code, out, err = command(module)
        assert (code, out) == (2, "")
        assert "no run found in runs/, 4 folders deep; train one: shakegpt train" in err


@pytest.mark.parametrize("module", COMMANDS)
def test_help_fits_80_columns(module, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = command("__main__", module, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: shakegpt {module} ")
    assert max(map(len, out.splitlines())) <= 80
    if "--config CONFIG" in out:
        assert "number of blocks (2)" in out  # the value in configs/cpu.py


def test_help_lists_every_command(command):
    for flags in ([], ["--help"]):
        code, out, err = command("__main__", *flags)
        assert (code, err) == (0, "")
        assert max(map(len, out.splitlines())) <= 80
        modules = (ROOT / "shakegpt_jax").glob("*.py")
        commands = {path.stem for path in modules if "\ndef main(" in path.read_text()}
        commands ^= {"train", "train_model"}
        assert set(re.findall(r"^  (\w+) ", out, re.MULTILINE)) == commands - {
            "__main__",
            "scaling",
        }
    assert command("__main__", "--version")[1] == f"shakegpt-jax {shakegpt_jax.__version__}\n"


TOO_LARGE = "not enough memory for these sizes: "


@pytest.mark.parametrize(
    ("problem", "code", "line"),
    [
        (UserError("\x1b[31m"), 2, r"\x1b[31m"),
        (SaveError("could not save"), 1, "could not save"),
        (DivergedError("try a lower rate"), 3, "try a lower rate"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 B\nmore"), 2, f"{TOO_LARGE}RESOURCE_EXHAUSTED: 9 B"),
        (RuntimeError("INTERNAL: Out of memory"), 2, f"{TOO_LARGE}INTERNAL: Out of memory"),
        (MemoryError(), 2, f"{TOO_LARGE}out of memory"),
    ],
)
def test_exit_codes(problem, code, line, run_main):
    def main() -> None:
        raise problem

    assert run_main(main) == (code, "", f"error: {line}\n")


def test_names_a_platform_that_jax_cannot_use(folder):
    env = environment(JAX_PLATFORMS="cpuu")
    code, out, err = finish(start("-m", "shakegpt_jax", "evaluate", cwd=folder, env=env))
    assert (code, out) == (2, "")
    assert "JAX_PLATFORMS is 'cpuu'" in one_line(err) and "set it to cpu" in err


def test_names_a_platform_for_which_jax_fails_without_a_message(monkeypatch, run_main):
    def fail() -> None:  # as JAX does for cuda without its package for CUDA
        raise AssertionError

    with pytest.raises(AssertionError):  # where JAX works, it is a fault of the program
        run_main(fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr("jax.devices", fail)
    code, _, err = run_main(fail)
    assert code == 2 and "JAX_PLATFORMS is 'cuda'" in one_line(err)


def test_works_without_a_home_folder(monkeypatch):
    def unknown(user: int) -> None:
        raise KeyError(user)

    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    before = jax.config.jax_compilation_cache_dir
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before


def test_settings_of_jax_do_not_change_the_text_of_a_seed(monkeypatch, run_main):
    for name in ("JAX_ENABLE_X64", "JAX_DEFAULT_PRNG_IMPL", "JAX_THREEFRY_PARTITIONABLE"):
        monkeypatch.setenv(name, "0")
        run_main(lambda: None)
        assert name not in os.environ


def test_dashes_are_underscores_in_names_of_options_alone():
    parser = ArgumentParser("x")
    parser.add_argument("--top_k", type=int)
    parser.add_argument("--top_prompt")
    args = parser.parse_args(["--top-k=3", "--top-prompt", "--top-b=c d"])
    assert (args.top_k, args.top_prompt) == (3, "--top-b=c d")


def test_tables_of_the_benchmarks_fit_80_columns(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ceilings = {"flops_per_second": 1e12, "bytes_per_second": 1e11}
    ceilings |= {"weights_bytes": 3_000_000, "weights_bytes_per_second": 1e12}
    measured = [
        Measurement("train step, batch 128", 1234.5, 10**9, "flops", 1e15, 20.0),
        Measurement("evaluation", 1.2, 1_234_567, "flops", 1e12),
        Measurement("sample, batch 1024", 0.123, 12_345_678, "bytes", 1e10),
    ]
    report = {
        "machine": {"device": "cpu"},
        "ceilings": ceilings,
        "results": [each.to_row(ceilings) for each in measured],
        "peak_memory_bytes": 1e9,
    }
    monkeypatch.setattr("shakegpt_jax.profiling.measurements.benchmark", lambda *_: report)
    code, out, _ = command("benchmark")
    assert code == 0
    table = out[out.index("\nwork") : out.index("\ncompilation")].strip()
    assert len(table.splitlines()) == 4  # no row is broken
    monkeypatch.setattr(
        "shakegpt_jax.profiling.measurements.measure_training",
        lambda config, _: measured[0]._replace(seconds=config.data.batch_size * 0.123),
    )
    code, out, _ = command("benchmark", "--scaling", *TINY)
    assert code == 0
    assert len(out.strip().splitlines()) == 5
    for line in (*table.splitlines(), *out.splitlines()):
        assert len(line) <= 80


def test_scaling_prints_json_and_plots(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = Measurement("", 1.0, 1, "flops", 1.0)
    monkeypatch.setattr(
        "shakegpt_jax.profiling.measurements.measure_training",
        lambda config, _: one._replace(seconds=config.model.n_embd**2 * 1e-3),
    )
    code, out, _ = command("benchmark", "--scaling", *TINY, "--json", "--plot=growth.png")
    assert code == 0
    growth = json.loads(out)
    assert growth["model.n_embd"] == [
        [16, 32, 64, 128],
        pytest.approx([0.256, 1.024, 4.096, 16.384]),
    ]
    assert growth["data.batch_size"][0] == [4, 8, 16, 32]
    assert Path("growth.png").read_bytes().startswith(b"\x89PNG")
    # Without matplotlib, it ends before it measures anything.
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("shakegpt_jax.profiling.measurements.measure_training", pytest.fail)
    code, out, err = command("benchmark", "--scaling", *TINY, "--plot=growth.png")
    assert (code, out) == (2, "")
    assert one_line(err).startswith("error: this needs matplotlib")


def test_commands_import_jax_only_after_parsing_their_arguments(tmp_path):
    names = ("__main__", "train_model", *(name for name in COMMANDS if name != "train"))
    code = f"import sys; import {', '.join(f'shakegpt_jax.{name}' for name in names)}\n"
    code += "assert not {'jax', 'numpy', 'argparse'} & sys.modules.keys()"
    assert finish(start("-c", code, cwd=tmp_path)) == (0, "", "")


def test_trains_and_evaluates_on_another_text(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    text = "αβγ δε ζη\n" * 200
    Path("own.txt").write_text(text)
    monkeypatch.setattr("shakegpt_jax.train_model.STARTED", time.perf_counter() - 1_000)
    code, out, _ = command("train", *TINY, "--config.data.path=own.txt", "--workdir=own")
    assert code == 0
    # The total time includes the time before training, since the process started.
    rows = [json.loads(line) for line in Path("own/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["wall_time"] > 1_000 > rows[-1]["train_time"]
    lm = shakegpt_jax.load(tmp_path / "own", step="latest")
    assert lm.tokenizer.vocabulary == "\n αβγδεζη"
    # The default prompt cannot be encoded: training and generating use a line of the text.
    assert "\n    αβγ δε ζη" in out
    code, out, _ = command("generate", "--workdir=own", "--max_new_tokens=5")
    assert code == 0 and out.startswith("αβγ δε ζη")
    assert json.loads(command("evaluate", "--workdir=own", "--json")[1])["count"] == 199
    Path("own.txt").rename("moved.txt")
    moved = ("--workdir=own", "--path=moved.txt", "--json")
    assert json.loads(command("evaluate", *moved, "--split=val")[1])["count"] == 199
    assert json.loads(command("evaluate", *moved)[1])["count"] == 1_999
    code, _, err = command("evaluate", "--workdir=own")
    assert code == 2 and "no such file" in err and "--path" in err
    code, _, err = command("generate", "--workdir=own")
    assert code == 2
    assert "the model cannot encode the default prompt; give one (no such file" in one_line(err)
    Path("own.txt").write_text(text + "ζ")
    code, _, err = command("evaluate", "--workdir=own")
    assert code == 2 and "own.txt is not the text that the model was trained on" in err


def test_exit_code_of_a_full_disk(tmp_path):
    # The limit on the size of a file, 10 kB, is less than the arrays need.
    args = [*TINY, "--config.train.eval_every=1", "--config.train.sample_length=0"]
    command = shlex.join([sys.executable, str(ROOT / "run_train.py"), *args])
    process = subprocess.run(
        ["bash", "-c", f"ulimit -f 10; exec {command}"],
        cwd=tmp_path,
        env=environment(JAX_COMPILATION_CACHE_DIR=""),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert process.stderr.count("\n") == 1
    assert process.stderr.startswith("error: could not save the checkpoint of step 1 ")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("shakegpt pl", "plot plan"),
        ("shakegpt generate --top", "--top_k --top_p"),
        ("shakegpt train --config.train.num_s", "--config.train.num_steps"),
        ("shakegpt train --config cp", "cpu cpu_muon"),
        ("shakegpt train --config READ", ""),
        ("shakegpt generate READ", ""),  # the shell looks for a file
    ],
)
def test_completion_in_bash(words, found):
    script = f"""
        shakegpt() {{ {sys.executable} -m shakegpt_jax "$@"; }}
        eval "$(shakegpt --completion)"
        COMP_WORDS=({words}) COMP_CWORD={len(words.split()) - 1} && _shakegpt
        echo "${{COMPREPLY[*]}}"
    """
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{found}\n", "")


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_exit_code_of_a_signal_and_the_same_command_resumes(tmp_path, number):
    args = [ROOT / "run_train.py", *TINY, "--config.train.num_steps=100000"]
    process = start(*args, cwd=tmp_path)
    assert process.stdout
    assert any(line.startswith("step ") for line in process.stdout)
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 128 + number
    assert re.fullmatch(r"stopped at step \d+, saved in runs/cpu; run the same .*\n", err)
    process = start(*args, cwd=tmp_path)
    assert process.stdout
    assert any(line.startswith("runs/cpu resumes at step") for line in process.stdout)
    process.kill()
    finish(process)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("argparse", signal.SIGINT),
        ("numpy", signal.SIGTERM),
        ("jax.numpy", signal.SIGTERM),
        ("flax.linen", signal.SIGINT),
    ],
)
def test_a_signal_at_any_moment_of_the_start_ends_the_command(folder, tmp_path, moment, number):
    training = [ROOT / "run_train.py", *TINY, "--config.train.num_steps=100000"]
    generating = ["-m", "shakegpt_jax.generate", "--max_new_tokens=9999999"]
    args, cwd = (training, tmp_path) if number == signal.SIGINT else (generating, folder)
    process = start("-X", "importtime", *args, cwd=cwd)
    assert process.stderr
    while not process.stderr.readline().strip().endswith(f" {moment}"):
        pass
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 128 + number
    # On a busy machine training may have begun before the signal comes; then it says so.
    expected = ("import time:", "stopped ") if number == signal.SIGINT else "import time:"
    assert all(line.startswith(expected) for line in err.splitlines()), err


@pytest.mark.slow
def test_a_cache_folder_that_cannot_be_written_is_silent(folder):
    env = environment(XDG_CACHE_HOME="/dev/null/none")
    del env["JAX_COMPILATION_CACHE_DIR"]
    process = start("-m", "shakegpt_jax.generate", "--max_new_tokens=5", cwd=folder, env=env)
    assert finish(process)[::2] == (0, "runs/cpu/checkpoints/20\n")


@pytest.mark.slow
def test_wheel_works_outside_the_checkout(tmp_path):
    source, wheels, target = (tmp_path / name for name in ("source", "wheels", "target"))
    ignore = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignore)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", wheels, source], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True)
    # Processes that compile as a user's do.
    env = environment(PYTHONPATH=str(target), JAX_DISABLE_MOST_OPTIMIZATIONS="0")
    env.pop("XLA_FLAGS", None)
    code = "import shakegpt_jax; print(shakegpt_jax.__file__)"
    _, out, _ = finish(start("-c", code, cwd=tmp_path, env=env))
    assert Path(out.strip()).is_relative_to(target)
    static = {path.name for path in (ROOT / "shakegpt_jax" / "web" / "static").iterdir()}
    assert {path.name for path in (target / "shakegpt_jax" / "web" / "static").iterdir()} == static
    shakegpt = [target / "bin" / "shakegpt"]
    code, out, err = finish(start(*shakegpt, "train", "--help", cwd=tmp_path, env=env))
    assert (code, err) == (0, "")
    shown = re.sub(r"\s+", " ", out)
    for path, field, value in cpu.get_config().fields():
        assert f"--config.{path} VALUE {field.metadata['meaning']} ({value!r})" in shown
    training = start(*shakegpt, "train", "--config", "cpu", *TINY, cwd=tmp_path, env=env)
    code, out, err = finish(training)
    assert (code, err) == (0, "")
    assert "runs/cpu/checkpoints/20" in out
    generating = start(*shakegpt, "generate", "--max-new-tokens=20", cwd=tmp_path, env=env)
    code, out, err = finish(generating)
    assert (code, len(out)) == (0, len("O God, O God!") + 21)


@pytest.mark.slow
def test_base_config_takes_two_steps_on_a_cpu(tmp_path):
    two_steps = ["--config.data.batch_size=4", "--config.train.num_steps=2", "--workdir=run"]
    two_steps += ["--config.train.eval_characters=8192", "--config.train.sample_length=20"]
    two_steps += ["--config.model.compute_dtype=float32"]  # slow enough on every CPU
    env = environment(JAX_DISABLE_MOST_OPTIMIZATIONS="0")
    env.pop("XLA_FLAGS", None)  # it compiles faster, but runs slower
    process = start(ROOT / "run_train.py", "--config=base", *two_steps, cwd=tmp_path, env=env)
    code, out, err = finish(process, timeout=400)
    assert (code, err) == (0, "")
    assert "one step takes" in out
    assert "step 2/2: loss" in out
