"""Import of models: what is the same for every source, and what an imported run lacks."""

import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from changes import change_json
from fakes import one_line

import shakegpt_jax
from shakegpt_jax.checkpoints.writer import CheckpointWriter
from shakegpt_jax.errors import SaveError

RUN = Path("new", "run")


@pytest.fixture
def foreign(hf: Path) -> str:
    """A folder that this package has not exported, in the working folder."""

    def change(config: dict[str, Any]) -> None:
        del config["shakegpt_jax"]
        config["activation_function"] = "gelu"

    change_json(hf / "config.json", change)
    return "hf"


def test_what_an_imported_run_cannot_do_is_said_in_one_line(foreign, finished, command):
    code, out, _ = command("import_model", foreign, "--workdir", RUN)
    assert code == 0 and f"shakegpt evaluate --workdir {RUN} --path FILE\n" in out
    for args, reason in {
        ("evaluate",): "training text of an imported model is not known; pass --path FILE",
        ("generate", "--draft"): "drafting needs the training text",
        ("train",): "holds an imported or saved model, without an optimizer state to resume from",
        ("plot",): "no curves of new/run: metrics.jsonl is missing",
        ("plot", "--tensorboard"): "no curves of new/run: metrics.jsonl is missing",
    }.items():
        before = sorted(RUN.rglob("checkpoints/**/*"))
        code, out, err = command(*args, "--workdir", RUN)
        assert (code, out) == (2, "") and reason in one_line(err)
        assert sorted(RUN.rglob("checkpoints/**/*")) == before
    line = f"no curves of {RUN}: metrics.jsonl is missing (an imported run) or empty\n"
    code, out, err = command("plot", RUN, finished, "--output", "x.png")
    assert (code, out, err) == (0, "x.png\n", line)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_exists_is_never_overwritten(foreign, tmp_path, command, kind):
    RUN.parent.mkdir()
    {
        "file": lambda: RUN.write_text("mine"),
        "folder": lambda: RUN.mkdir(),
        "link": lambda: RUN.symlink_to("nowhere"),
    }[kind]()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = command("import_model", foreign, "--workdir", RUN)
    assert (code, out) == (2, "") and "exists already" in one_line(err)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_folder_that_cannot_be_written_is_not_left_behind(foreign, command, monkeypatch):
    Path("file").write_text("mine")
    for name in ("file/run", 300 * "x", "a\0b"):
        code, out, err = command("import_model", foreign, "--workdir", name)
        assert (code, out) == (2, "") and "cannot create the run folder" in one_line(err)

    def fail(*args: Any) -> None:
        raise SaveError("no space")

    monkeypatch.setattr(CheckpointWriter, "save", fail)
    assert command("import_model", foreign, "--workdir", "run") == (1, "", "error: no space\n")
    assert not Path("run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_half_of_a_run(foreign, command, monkeypatch, number):
    save = CheckpointWriter.save

    def interrupted(*args: Any) -> None:
        os.kill(os.getpid(), number)
        save(*args)

    monkeypatch.setattr(CheckpointWriter, "save", interrupted)
    assert command("import_model", foreign, "--workdir", RUN) == (128 + number, "", "")
    assert shakegpt_jax.load(RUN).checkpoint == RUN / "checkpoints" / "1"


def test_an_imported_model_is_exported_and_comes_back(foreign, command):
    assert command("import_model", foreign, "--workdir", RUN)[0] == 0
    assert command("export", "--workdir", RUN, "--output", "out")[0] == 0
    card = Path("out", "README.md").read_text()
    assert "| training text | unknown |\n" in card and "training steps" not in card
    assert "imitates its training text, which is not known, with" in card
    assert "Tiny Shakespeare" not in card
    assert command("import_model", "out", "--workdir", "again")[0] == 0
    first, again = shakegpt_jax.load(RUN), shakegpt_jax.load("again")
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    assert first.config.model.activation == "gelu_exact"
    assert (first.config, first.text_sha256) == (again.config, again.text_sha256)
