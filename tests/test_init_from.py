"""Fine-tuning: `train.init_from` starts a run from the parameters of another one."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from fakes import Crash, crash_at_9, one_line
from test_processes import losses, many  # noqa: F401  # a fixture
from test_training_run import reproducible

from shakegpt_jax import load
from shakegpt_jax.checkpoints import reader
from shakegpt_jax.checkpoints.digests import write_digests
from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.run_folder import RunMetadata
from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import load_corpus
from shakegpt_jax.data.prepared import prepare_text
from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.errors import UserError
from shakegpt_jax.inference.evaluation import select
from shakegpt_jax.model.gpt import GPT
from shakegpt_jax.sharding import gather, make_mesh
from shakegpt_jax.training.run import train
from shakegpt_jax.training.start import find_pretrained, load_params, recorded_config
from shakegpt_jax.training.step import make_chunk

NEW = "#0é€"  # before, between and after the characters of the source
SMALL = {
    "model.n_layer": 1,
    "model.n_head": 2,
    "model.n_embd": 16,
    "model.block_size": 8,
    "data.batch_size": 8,
    "mesh.data": 1,
}


@pytest.fixture(scope="session")
def other_file(tmp_path_factory, text: str) -> Path:
    """A text of a fifth of the source's, with fewer of its characters and some that it lacks."""
    path = tmp_path_factory.mktemp("other") / "other.txt"
    lower = text[:4_000].lower()
    path.write_text("".join(c + NEW[i // 9 % 4] * (i % 9 == 0) for i, c in enumerate(lower)))
    return path


@pytest.fixture
def other(config: Config, finished: Path, other_file: Path) -> Config:
    """A config that fine-tunes `finished` on the other text, not frozen."""
    config.data.path, config.train.init_from = str(other_file), str(finished)
    return config


class Started:
    """A state that starts from a source, as the trainer creates it."""

    def __init__(self, config: Config, tmp_path: Path):
        source = find_pretrained(config.freeze(), tmp_path / "new")
        assert source
        known = source.metadata.vocabulary
        block_size = config.model.block_size
        self.tokenizer = load_corpus(config.data.path, block_size, known).tokenizer
        self.model, mesh = GPT(config.model, self.tokenizer.vocab_size), make_mesh(config)
        self.chunk = make_chunk(config, self.model, mesh)
        with jax.set_mesh(mesh):
            start = load_params(source, self.tokenizer.vocabulary, mesh)
            self.state = self.chunk.create(np.int32(0), start)
        self.params = gather(mesh, self.state.params)

    def logits(self, text: str) -> np.ndarray:
        """Compute the (len(text), V) logits after each character."""
        ids = self.tokenizer.encode(text)
        return np.asarray(self.model.apply({"params": self.params}, ids[None]))[0]


@pytest.mark.parametrize(
    "mesh",
    [
        {},
        pytest.param({"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_known_characters_keep_their_logits_and_new_ones_are_random(
    other, finished, tmp_path, mesh
):
    started, lm = Started(other.replace(mesh), tmp_path), load(finished)
    known, vocabulary = lm.tokenizer.vocabulary, started.tokenizer.vocabulary
    assert vocabulary == "".join(sorted(set(known + NEW)))
    assert not set(NEW) & set(known)
    ours, theirs = started.logits("Citizen"), lm.logits("Citizen")
    for i, character in enumerate(known):
        same = ours[:, vocabulary.index(character)]
        np.testing.assert_allclose(same, theirs[:, i], atol=1e-5, err_msg=character)
    new = [vocabulary.index(character) for character in NEW]
    wte_VxD, head_DxV = started.params["wte"]["embedding"], started.params["lm_head"]["kernel"]
    for rows in (np.asarray(wte_VxD)[new], np.asarray(head_DxV).T[new]):
        assert len(np.unique(rows, axis=0)) == len(NEW)  # neither zeros nor copies
        assert 0.5 < rows.std() / other.model.init_stddev < 2
    assert started.state.step == 0
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(started.state.opt_state))
    shardings = jax.tree.map(lambda a: a.sharding, (started.state, started.chunk.abstract_state))
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, *shardings))


def test_a_shorter_window_keeps_the_first_positions(other, finished, tmp_path):
    started, lm = Started(other.replace({"model.block_size": 5}), tmp_path), load(finished)
    known = started.tokenizer.encode(lm.tokenizer.vocabulary)
    ours = started.logits("Citiz")
    np.testing.assert_allclose(ours[:, known], lm.logits("Citiz"), atol=1e-5)


def test_without_updates_the_loss_is_that_of_the_source(
    run_config, finished_copy, tmp_path, capsys
):
    """The source has parameters only and its text is not known, as after an import."""
    for step in (6, 12):
        folder = finished_copy / "checkpoints" / str(step)
        shutil.rmtree(folder / "opt_state")
        metadata = json.loads((folder / "metadata.json").read_text())
        assert metadata["text_sha256"]
        (folder / "metadata.json").write_text(json.dumps(metadata | {"text_sha256": ""}))
        write_digests(folder)
    assert {load(finished_copy, step=step).text_sha256 for step in (6, 12)} == {""}
    run_config.train.init_from = str(finished_copy)
    run_config.optimizer.learning_rate = 1e-30  # too small to change a float32
    train(run_config.freeze(), tmp_path / "run")
    checkpoints = CheckpointReader(finished_copy)
    best = checkpoints.find("best")
    loss = checkpoints.read(best).metrics["loss"]
    assert CheckpointReader(tmp_path / "run").read(12).metrics["loss"] == pytest.approx(
        loss, rel=1e-6
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[7:9] == [
        f"starts from {finished_copy}/checkpoints/{best}",
        f"step 0/12: validation loss {loss:.4f}",
    ]


@pytest.mark.slow
def test_resuming_is_bit_exact_and_needs_no_source(other, finished_copy, tmp_path, capsys):
    config = other.replace({"train.init_from": str(finished_copy)})
    train(config, tmp_path / "whole")
    out = capsys.readouterr().out
    assert (
        f"\nstarts from {finished_copy}/checkpoints/12, with new rows for 4 characters that it "
        "lacks: '#' '0' 'é' '€'\nstep 0/12: validation loss "
    ) in out
    with pytest.raises(Crash):
        train(config, tmp_path / "stopped", callbacks=[crash_at_9])
    shutil.rmtree(finished_copy)
    moved = config.replace({"train.init_from": "moved"})
    train(moved, tmp_path / "stopped")
    assert "resumes at step 6 of 12" in capsys.readouterr().out
    assert load(tmp_path / "stopped").config.train.init_from == str(finished_copy)
    assert reproducible(tmp_path / "whole") == reproducible(tmp_path / "stopped")
    ends = [load(tmp_path / name, step=12).params for name in ("whole", "stopped")]
    assert jax.tree.all(jax.tree.map(np.array_equal, *ends))

    with pytest.raises(UserError, match=r"a different train\.init_from \(saved '.*', now ''\)"):
        train(config.replace({"train.init_from": ""}), tmp_path / "stopped")


def test_the_run_started_from_may_move_but_not_come_or_go(config, text):
    def recorded(now: str, saved: str) -> str:
        metadata = RunMetadata(config.replace({"train.init_from": saved}), text, "")
        config_now = config.replace({"train.init_from": now})
        return recorded_config(config_now, metadata).train.init_from

    assert recorded("moved", "/source") == "/source"
    assert recorded("", "/source") == recorded("", "") == ""  # refused, and the same
    assert recorded("/source", "") == "/source"  # refused
    assert recorded_config(config.replace({"train.init_from": "~"}), None).train.init_from == str(
        Path.home()
    )


def test_finds_another_checkpoint_if_training_replaces_one(other, finished_copy, monkeypatch):
    verify, best = reader.verify_digests, finished_copy / "checkpoints" / "12"

    def prune_first(folder, skip=()):
        if folder == best and best.exists():
            shutil.rmtree(best)
        verify(folder, skip)

    monkeypatch.setattr(reader, "verify_digests", prune_first)
    source = find_pretrained(other.replace({"train.init_from": str(finished_copy)}), "new")
    assert source and source.step == 6


@pytest.mark.slow
def test_commands_use_the_wider_vocabulary(other, tmp_path):
    train(other.freeze(), tmp_path / "run")
    expected = CheckpointReader(tmp_path / "run").read(12).metrics["loss"]
    assert select(tmp_path / "run", step=12).evaluate()["loss"] == pytest.approx(expected)
    lm = load(tmp_path / "run")
    corpus = lm.load_corpus()
    assert corpus.tokenizer == lm.tokenizer
    texts = [lm.generate("the", 20, draft=draft) for draft in (True, False)]
    assert texts[0] == texts[1]
    assert lm.config.train.init_from == other.train.init_from


def test_a_text_is_encoded_with_more_characters_than_it_has(tmp_path, other_file):
    text = other_file.read_text()
    prepare_text([str(other_file)], str(tmp_path / "prepared"))
    for characters, dtype in (("XYZ", np.uint8), ("".join(map(chr, range(300))), np.uint16)):
        tokenizer = CharTokenizer("".join(sorted(set(text + characters))))
        for path in (other_file, tmp_path / "prepared"):
            corpus = load_corpus(str(path), 8, characters)
            assert corpus.tokenizer == tokenizer
            assert corpus.train_ids.dtype == dtype
            assert tokenizer.decode(corpus.train_ids) + tokenizer.decode(corpus.val_ids) == text
    own = load_corpus(str(tmp_path / "prepared"), 8, text[:50])
    assert isinstance(own.train_ids, np.memmap)  # nothing to translate: it stays on disk


def corrupt(run: Path) -> None:
    """Change one byte of the parameters of each checkpoint."""
    for step in (6, 12):
        files = (run / "checkpoints" / str(step) / "params").rglob("*")
        largest = max(files, key=lambda path: path.stat().st_size * path.is_file())
        raw = bytearray(largest.read_bytes())
        raw[len(raw) // 2] ^= 1
        largest.write_bytes(raw)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train.init_from": "nothing"}, "config.train.init_from: no such run folder: nothing"),
        (
            {"train.init_from": "."},
            "config.train.init_from: . is a folder of runs (broken, source)",
        ),
        (
            {"train.init_from": "source/checkpoints/12"},
            "it is inside the run source; pass that folder",
        ),
        (
            {"train.init_from": "source/checkpoints"},
            "it is inside the run source; pass that folder",
        ),
        (
            {"train.init_from": "hf"},
            "config.train.init_from: hf is not a run folder: it holds no checkpoints; "
            "import it first: shakegpt import_model hf",
        ),
        (
            {"train.init_from": "ckpt.pt"},
            "no such run folder: ckpt.pt; import it first: shakegpt import_model",
        ),
        ({"train.init_from": "broken"}, "is corrupt: its SHA-256 differs"),
        (
            {"model.n_layer": 2, "model.n_embd": 32},
            "config.model has n_layer 2, n_embd 32, unlike the model of source "
            "(config.train.init_from); add --config.model.n_layer=1 --config.model.n_embd=16",
        ),
        (
            {"model.block_size": 9},
            "config.model has block_size 9, unlike the model of source (config.train.init_from); "
            "add --config.model.block_size=8",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_refuses_what_cannot_work_in_one_line(
    finished, other_file, tmp_path, monkeypatch, command, changes, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").symlink_to(finished)
    shutil.copytree(finished, tmp_path / "broken")
    corrupt(tmp_path / "broken")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").touch()
    config = SMALL | {"data.path": other_file, "train.init_from": "source"} | changes
    arguments = [f"--config.{name}={value}" for name, value in config.items()]
    code, out, err = command("train", "--workdir", "new", *arguments)
    assert (code, out) == (2, "")
    assert message in one_line(err)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_two_processes_start_as_one(many, finished, other_file):  # noqa: F811
    arguments = (f"--config.data.path={other_file}", f"--config.train.init_from={finished}")
    ended = many.run(2, *arguments, "--config.mesh.data=1", "--config.mesh.fsdp=2")
    assert [code for code, _, _ in ended] == [0, 0]
    assert "with new rows for 4 characters" in ended[0][1]
    two = losses(many.workdir)
    shutil.rmtree(many.workdir)
    assert [code for code, _, _ in many.run(1, *arguments)] == [0]
    np.testing.assert_allclose(two, losses(many.workdir), rtol=1e-4)
