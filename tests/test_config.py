import dataclasses
import functools
import math
import re
import sys
from collections.abc import Callable

import jax
import pytest

from shakegpt_jax.cli.arguments import ConfigArgumentParser, near_fields
from shakegpt_jax.config import Config
from shakegpt_jax.configs import NAMES, load_config
from shakegpt_jax.errors import UserError
from shakegpt_jax.model.gpt import GPT
from shakegpt_jax.sharding import make_mesh
from shakegpt_jax.training.optimizer import make_optimizer
from shakegpt_jax.training.step import create_state

MILLIONS = {
    "base": 85.15,
    "cpu": 0.4,
    "cpu_muon": 0.4,
    "large": 1_210.42,
    "record": 10.8,
    "speedrun": 4.84,
    "ten_minutes": 1.83,
}


def test_every_field_has_a_meaning_and_accepts_its_default():
    for path, field, value in Config().fields():
        assert field.metadata["meaning"], path
        assert field.metadata["rule"].accepts(value), path


def test_loads_the_config_of_the_first_release():
    """Checkpoints store their config: a field that was added since must be in _ADDED_FIELDS."""
    names = {
        "model": "n_layer n_head n_embd block_size dropout init_stddev compute_dtype",
        "data": "path batch_size",
        "optimizer": "name learning_rate final_learning_rate warmup_steps b1 b2 eps clip_norm "
        "weight_decay max_skipped_updates",
        "train": "num_steps eval_every seed steps_per_dispatch keep_checkpoints sample_length",
        "mesh": "data fsdp",
    }
    values = Config().to_dict()
    first = {section: {n: values[section][n] for n in names[section].split()} for section in names}
    config = Config()
    config.train.eval_characters = 0  # all, as it was
    assert Config.from_dict(first) == config


@pytest.fixture
def parse(monkeypatch) -> Callable[..., Config]:
    """Returns the config of a command line."""

    def parse_arguments(*arguments: str) -> Config:
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        return ConfigArgumentParser("train").parse_config()[1]

    return parse_arguments


def test_sets_fields_from_text(parse):
    values = {
        "model.n_layer": 3,
        "model.remat": True,
        "optimizer.eps": 1e-6,
        "data.path": "my text.txt",
    }
    given = [f"--config.{path}={value}" for path, value in values.items()]
    assert parse(*given) == load_config("cpu").replace(values)
    for argument, message in (
        ("model.n_layers=3", "no option --config.model.n_layers; did you mean --config.model.n_l"),
        ("xyz=3", "no option --config.xyz (--help"),
        ("model.n_layer=3.5", "n_layer is '3.5'; it must be a whole number from 1"),
        ("optimizer.eps=tiny", "optimizer.eps is 'tiny'; it must be above 0"),
        ("model.remat=2", "model.remat is '2'; it must be True or False"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            parse(f"--config.{argument}")


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("model.n_layer", "layers num_layers n_layers depth train.n_layer n_layer"),
        ("model.n_head", "heads num_heads"),
        ("model.n_embd", "width dim hidden hidden_size d_model embd"),
        ("model.block_size", "context ctx seq_len block model.context_length window"),
        ("model.dropout", "dropout_rate"),
        ("data.batch_size", "batch batch_size train.batch_size bs"),
        ("optimizer.learning_rate", "lr optimizer.lr train.lr learningRate lerning_rate"),
        ("optimizer.weight_decay", "wd weight_deacy"),
        ("optimizer.clip_norm", "grad_clip clip"),
        ("optimizer.warmup_steps", "warmup warmup_iters"),
        ("optimizer.b1", "beta1"),
        ("optimizer.b2", "beta2"),
        ("train.num_steps", "steps iters max_iters max_steps epochs"),
        ("train.eval_every", "eval_interval"),
        ("train.seed", "model.seed"),
    ],
)
def test_suggests_the_field_of_another_name(field, names):
    assert {name: near_fields(name) for name in names.split()} == {
        name: [field] for name in names.split()
    }


def test_config_files_may_return_a_frozen_config(tmp_path, parse):
    text = "from shakegpt_jax.config import Config\nget_config = Config().freeze\n"
    (tmp_path / "frozen.py").write_text(text)
    config = parse(f"--config={tmp_path / 'frozen.py'}", "--config.model.n_layer=3")
    assert config == Config().replace({"model.n_layer": 3})


def test_frozen_config_refuses_assignment_and_hashes_by_value():
    config = Config().freeze()
    assert hash(config.model) == hash(Config().model)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.n_layer = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model = Config().model


def test_configs_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cpu").mkdir()  # a bare name is never a file or folder of the user
    for name in NAMES:
        load_config(name)
    assert sorted(MILLIONS) == NAMES


@pytest.mark.parametrize("name", MILLIONS)
def test_every_config_describes_a_run(name):
    config = load_config(name).freeze()
    tx = make_optimizer(config.optimizer, config.train.num_steps)
    state = jax.eval_shape(functools.partial(create_state, GPT(config.model, 65), tx), 0)
    n_param = sum(math.prod(array.shape) for array in jax.tree.leaves(state.params))
    assert n_param / 1e6 == pytest.approx(MILLIONS[name], abs=0.05)
    make_mesh(config)  # its batch is a multiple of the devices


def test_base_config_has_the_required_shape_and_optimizer():
    config = load_config("base")
    assert dataclasses.astuple(config.model)[:4] == (12, 8, 768, 128)
    assert config.data.batch_size == 128
    assert config.optimizer.name == "adam"


def test_accepts_an_integer_for_a_float():
    config = Config()
    config.optimizer.learning_rate = 1
    assert config.freeze().optimizer.learning_rate == 1


def test_config_survives_a_dict():
    config = Config()
    config.model.n_layer = 3
    config.data.path = "a b"
    assert Config.from_dict(config.to_dict()) == config
    older = config.to_dict()
    del older["optimizer"]["adam_weight_decay"], older["train"]["target_loss"]
    assert Config.from_dict(older) == config
    whole = config.to_dict()
    for bad, message in (
        (
            whole | {"modell": {"n_layer": 1}},
            "the sections model, .*, modell; they must be model, data",
        ),
        (whole | {"model": whole["model"] | {"layers": 1}}, "no config field layers; valid fields"),
        (whole | {"mesh": {"data": 1}}, "config.mesh lacks fsdp"),
        ({"mesh": whole["mesh"]}, "the config has the sections mesh; they must be"),
    ):
        with pytest.raises(UserError, match=message):
            Config.from_dict(bad)


def test_refuses_assignment_to_an_unknown_field():
    config = Config()
    for section, name in ((config, "modle"), (config.model, "n_layers")):
        with pytest.raises(UserError, match=f"no config field {name}; valid fields"):
            setattr(section, name, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.n_head": 7}, "model.n_embd is 768; it must be a multiple of n_head (7)"),
        ({"optimizer.final_learning_rate": 1.0}, "final_learning_rate is 1.0; it must be at most"),
        ({"optimizer.adam_weight_decay": 0.1}, "is 0.1; it must be 0.0 with adam, which does"),
        (
            {"optimizer.name": "muon", "optimizer.nesterov": True},
            "optimizer.nesterov is True; it must be False with muon",
        ),
        ({"mesh.fsdp": -1}, "config.mesh.data and config.mesh.fsdp are -1; only one can take"),
        ({"train.accumulate_steps": 3}, "accumulate_steps is 3; it must be a divisor of data.batc"),
        ({"model.n_layer": "x" * 100}, "is 'xxxxx"),
    ],
)
def test_refuses_values_that_do_not_go_together(changes, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        Config().replace(changes)
    assert len(str(error.value)) < 180


@pytest.mark.parametrize(
    ("name", "field", "value"), [("adam", "adam_weight_decay", 0.1), ("muon", "nesterov", True)]
)
def test_a_checkpoint_may_record_what_its_optimizer_ignored(name, field, value):
    config = Config()
    config.optimizer.name = name
    values = config.freeze().to_dict()
    values["optimizer"][field] = value
    with pytest.raises(
        UserError, match=rf"optimizer\.{field} is {value}; it must be .* with {name}"
    ):
        Config.from_dict(values)
    assert Config.from_dict(values, recorded=True) == config
