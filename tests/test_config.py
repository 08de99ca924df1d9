import dataclasses
import functools
import importlib
import math
import re
from pathlib import Path

import jax
import pytest

from shakegpt_jax.config import Config
from shakegpt_jax.configs import load_config
from shakegpt_jax.errors import UserError
from shakegpt_jax.model.gpt import GPT
from shakegpt_jax.sharding import make_mesh
from shakegpt_jax.training.optimizer import make_optimizer
from shakegpt_jax.training.step import create_state

CONFIGS = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("*.py"))
MILLIONS = {
    "base": 85.25,
    "cpu": 0.4,
    "cpu_muon": 0.4,
    "large": 1_210.97,
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


def test_sets_fields_from_text():
    config = Config()
    for path, text, value in (
        ("model.n_layer", "3", 3),
        ("optimizer.eps", "1e-6", 1e-6),
        ("data.path", "my text.txt", "my text.txt"),
    ):
        config.set(path, text)
        assert {name: v for name, _, v in config.fields()}[path] == value
    for path, text, message in (
        ("model.n_layers", "3", "no config field model.n_layers; did you mean model.n_layer?"),
        ("xyz", "3", "no config field xyz; did you mean one of model.n_layer, "),
        ("model.n_layer", "3.5", "n_layer is '3.5'; it must be a whole number from 1"),
        ("optimizer.eps", "tiny", "optimizer.eps is 'tiny'; it must be above 0"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            config.set(path, text)


def test_config_files_may_return_a_frozen_config(tmp_path):
    text = "from shakegpt_jax.config import Config\nget_config = Config().freeze\n"
    (tmp_path / "frozen.py").write_text(text)
    config = load_config(str(tmp_path / "frozen.py"))
    config.set("model.n_layer", "3")
    assert config.freeze() == Config().replace({"model.n_layer": 3})


def test_frozen_config_refuses_assignment_and_hashes_by_value():
    config = Config().freeze()
    assert hash(config.model) == hash(Config().model)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.n_layer = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model = Config().model


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_file_describes_a_run(name):
    config = importlib.import_module(f"configs.{name}").get_config().freeze()
    tx = make_optimizer(config.optimizer, config.train.num_steps)
    state = jax.eval_shape(functools.partial(create_state, GPT(config.model, 65), tx), 0)
    n_param = sum(math.prod(array.shape) for array in jax.tree.leaves(state.params))
    assert n_param / 1e6 == pytest.approx(MILLIONS[name], abs=0.05)
    make_mesh(config)  # its batch is a multiple of the devices


def test_base_config_has_the_required_shape_and_optimizer():
    config = importlib.import_module("configs.base").get_config()
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
        (whole | {"modell": {"n_layer": 1}}, "unknown config section modell"),
        (whole | {"model": whole["model"] | {"layers": 1}}, "no config field layers; valid fields"),
        (whole | {"mesh": {"data": 1}}, "config.mesh lacks fsdp"),
        ({"mesh": whole["mesh"]}, "the config lacks data, model, optimizer, train"),
    ):
        with pytest.raises(UserError, match=message):
            Config.from_dict(bad)


def test_refuses_assignment_to_an_unknown_field():
    config = Config()
    for section, name in ((config, "modle"), (config.model, "n_layers")):
        with pytest.raises(UserError, match=f"no config field {name}; valid fields"):
            setattr(section, name, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model.n_layer", 0),
        ("model.n_head", -1),
        ("model.n_head", 7),
        ("model.n_embd", 2**31),
        ("model.block_size", 0),
        ("model.block_size", 1.5),
        ("model.dropout", 1.0),
        ("model.dropout", math.nan),
        ("model.compute_dtype", "float16"),
        ("data.path", "a\0b"),
        ("data.batch_size", True),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.learning_rate", math.inf),
        ("optimizer.final_learning_rate", -1.0),
        ("optimizer.final_learning_rate", 1.0),
        ("optimizer.clip_norm", 0.0),
        ("optimizer.b2", 1.0),
        ("train.num_steps", 0),
        ("train.seed", -1),
        ("mesh.data", 0),
        ("mesh.fsdp", 0),
    ],
)
def test_refuses_invalid_values_and_names_the_field(field, value):
    config = Config()
    section, name = field.split(".")
    setattr(getattr(config, section), name, value)
    with pytest.raises(UserError, match="it must be") as error:
        config.freeze()
    assert "\n" not in str(error.value)
    assert field in str(error.value) or "n_head" in str(error.value)


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
