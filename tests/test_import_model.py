"""Import of models: what is the same for every source, and what an imported run lacks."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from fakes import one_line

import shakegpt_jax
from shakegpt_jax.checkpoints.writer import CheckpointWriter
from shakegpt_jax.errors import SaveError

RUN = Path("new", "run")
NANO = ("ckpt.pt", "--meta", "meta.pkl")


def test_what_an_imported_run_cannot_do_is_said_in_one_line(nanogpt_files, command):
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


def test_plots_leave_out_imported_runs_and_say_so(nanogpt_files, finished, command):
    assert command("import_model", *NANO, "--workdir", RUN)[0] == 0
    line = f"no curves of {RUN}: metrics.jsonl is missing, as in an imported run\n"
    code, out, err = command("plot", RUN, finished, "--output", "x.png")
    assert (code, out, err) == (0, "x.png\n", line)
    code, out, err = command("plot", RUN, "--tensorboard")
    assert (code, out, err) == (2, "", f"error: {line}")


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_exists_is_never_overwritten(nanogpt_files, command, kind):
    RUN.parent.mkdir()
    {
        "file": lambda: RUN.write_text("mine"),
        "folder": lambda: RUN.mkdir(),
        "link": lambda: RUN.symlink_to("nowhere"),
    }[kind]()
    before = sorted(nanogpt_files.rglob("*"))
    code, out, err = command("import_model", *NANO, "--workdir", RUN)
    assert (code, out) == (2, "") and "exists already" in one_line(err)
    assert sorted(nanogpt_files.rglob("*")) == before


def test_a_run_folder_that_cannot_be_written_is_not_left_behind(
    nanogpt_files, command, monkeypatch
):
    (nanogpt_files / "file").write_text("mine")
    code, out, err = command("import_model", *NANO, "--workdir", "file/run")
    assert (code, out) == (2, "") and "cannot create the run folder file/run" in one_line(err)

    def fail(checkpoints: CheckpointWriter, step: int, *args: object) -> None:
        raise SaveError(f"could not save the checkpoint of step {step}")

    monkeypatch.setattr(CheckpointWriter, "save", fail)
    code, out, err = command("import_model", *NANO, "--workdir", "run")
    assert (code, out) == (1, "") and "could not save the checkpoint of step 250" in one_line(err)
    assert not (nanogpt_files / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_half_of_a_run(nanogpt_files, command, monkeypatch, number):
    save = CheckpointWriter.save

    def interrupted(*args: Any) -> None:
        os.kill(os.getpid(), number)
        save(*args)

    monkeypatch.setattr(CheckpointWriter, "save", interrupted)
    assert command("import_model", *NANO, "--workdir", RUN) == (128 + number, "", "")
    assert shakegpt_jax.load(RUN).checkpoint == RUN / "checkpoints" / "250"


def test_an_imported_model_is_exported_and_comes_back(nanogpt_files, command):
    assert command("import_model", *NANO, "--workdir", RUN)[0] == 0
    assert command("export", "--workdir", RUN, "--output", "hf")[0] == 0
    assert (
        json.loads((nanogpt_files / "hf" / "config.json").read_text())["activation_function"]
        == "gelu"
    )
    card = (nanogpt_files / "hf" / "README.md").read_text()
    assert "| training steps | 250 |\n" in card and "| training text | unknown |\n" in card
    assert "imitates its training text, which is not known, with" in card
    assert "Tiny Shakespeare" not in card
    assert shakegpt_jax.load(RUN).config.train.num_steps == 250
    assert command("import_model", "hf", "--workdir", "again")[0] == 0
    first, again = shakegpt_jax.load(RUN), shakegpt_jax.load("again")
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    assert (first.config, first.text_sha256) == (again.config, again.text_sha256)


def test_only_folders_need_safetensors(hf, nanogpt_files, command, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "this needs safetensors: pip install -e '.[hf]'" in refused(hf)
    assert command("import_model", *NANO, "--workdir", RUN)[0] == 0
