"""Everything about a run that can be chosen, with its units, and what values are refused.

The dataclasses are mutable while a config file and the command line fill them in;
`Config.freeze()` validates them and ends that.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from shakegpt_jax.errors import UserError

# Checkpoints of format 1 may lack them, being older; the defaults are what was done then.
_NEWER_FIELDS = {"adam_weight_decay"}


class _Section:
    """Fields that can be frozen; hashed by value once they are, so that jit can key on them."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __setattr__(self, name: str, value: Any) -> None:
        if getattr(self, "_frozen", False):
            raise dataclasses.FrozenInstanceError(f"the config is frozen: cannot assign {name}")
        if name not in (fields := self.__dataclass_fields__):  # a config file's misspelling
            raise UserError(f"no config field {name}; there are: {', '.join(fields)}")
        super().__setattr__(name, value)


@dataclasses.dataclass(unsafe_hash=True)
class ModelConfig(_Section):
    """The decoder's shape; the defaults are 85 million parameters."""

    n_layer: int = 12  # blocks
    n_head: int = 8  # attention heads of a block
    n_embd: int = 768  # a multiple of n_head
    block_size: int = 128  # characters the model looks back on, the one it reads included
    dropout: float = 0.0  # probability, after the embeddings and on both residual branches
    init_stddev: float = 0.02  # of the first weights, GPT-2's; narrow models want more
    compute_dtype: str = "auto"  # of matmuls; auto: bfloat16 on accelerators, float32 on CPU


@dataclasses.dataclass(unsafe_hash=True)
class DataConfig(_Section):
    """What is learned from."""

    path: str = ""  # a UTF-8 text file; empty: Tiny Shakespeare, which comes with the install
    batch_size: int = 128  # windows per optimizer step, over all devices together


@dataclasses.dataclass(unsafe_hash=True)
class OptimizerConfig(_Section):
    """Adam or Muon behind global-norm clipping, on a warmup-cosine schedule."""

    name: str = "adam"  # adam, or muon: Muon for the blocks' matrices and Adam for the rest
    learning_rate: float = 1e-3  # at the top of the schedule
    final_learning_rate: float = 0.0  # where the cosine ends, one step after the last
    warmup_steps: int = 100  # up to learning_rate, linearly; at most half the run
    b1: float = 0.9  # decay of Adam's mean of the gradients
    b2: float = 0.99  # decay of Adam's mean of their squares
    eps: float = 1e-8  # keeps Adam's division finite
    clip_norm: float = 1.0  # gradients longer than this are scaled down to it
    weight_decay: float = 0.0  # per step times the rate, on matrices; with muon, on the blocks'
    adam_weight_decay: float = 0.0  # the same with muon, of all that Adam moves
    max_skipped_updates: int = 0  # in a row, where gradients are not finite; one more ends the run


@dataclasses.dataclass(unsafe_hash=True)
class TrainConfig(_Section):
    """How long, and what happens on the way."""

    num_steps: int = 5_000  # optimizer steps
    eval_every: int = 250  # steps; evaluate on the whole validation split and save a checkpoint
    seed: int = 0  # of the parameters, the windows drawn and the dropout
    steps_per_dispatch: int = 50  # steps that run on the device between two looks at them
    keep_checkpoints: int = 2  # the latest so many are kept, and the best one
    sample_length: int = 200  # characters of verse shown at each evaluation; 0: none


@dataclasses.dataclass(unsafe_hash=True)
class MeshConfig(_Section):
    """Devices per mesh axis; their product is the number of devices used."""

    data: int = -1  # the batch is split over this axis; -1: all devices, divided by fsdp
    fsdp: int = 1  # batch, parameters and optimizer state are split over this one


@dataclasses.dataclass(unsafe_hash=True)
class Config(_Section):
    """One run, whole."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def freeze(self) -> "Config":
        """Validate, then refuse further assignments.

        Returns:
            This config.

        Raises:
            UserError: if a value is refused; names the field and what would be right.
        """
        validate(self)
        for section in (*(getattr(self, f.name) for f in dataclasses.fields(self)), self):
            object.__setattr__(section, "_frozen", True)
        return self

    def replace(self, changes: dict[str, Any]) -> "Config":
        """Make a frozen copy with other values, by field: `{"model.n_layer": 6}`.

        Raises:
            UserError: if a value is refused.
        """
        values = self.to_dict()
        for path, value in changes.items():
            section, _, name = path.partition(".")
            values.setdefault(section, {})[name] = value
        return Config.from_dict(values)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The fields as nested dicts, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, dict[str, Any]]) -> "Config":
        """Build the frozen config that `to_dict` wrote.

        Raises:
            UserError: if a section or field is unknown, missing or holds a refused value.
        """
        config = cls()
        sections = {field.name: getattr(config, field.name) for field in dataclasses.fields(cls)}
        if not isinstance(values, dict):
            raise UserError(f"the config is {values!r}, not one mapping per section")
        for section_name, fields in values.items():
            if section_name not in sections:
                raise UserError(f"unknown config section {section_name}; there are {[*sections]}")
            if not isinstance(fields, dict):
                raise UserError(f"config.{section_name} is {fields!r}, not a mapping of its fields")
            section = sections[section_name]
            names = {field.name for field in dataclasses.fields(section)}
            if missing := names - fields.keys() - _NEWER_FIELDS:
                raise UserError(f"config.{section_name} lacks {', '.join(sorted(missing))}")
            for name, value in fields.items():
                setattr(section, name, value)
        if missing := sections.keys() - values.keys():
            raise UserError(f"the config lacks {', '.join(sorted(missing))}")
        return config.freeze()


def _whole(least: int, most: int = 2**31 - 1) -> tuple[Callable[[Any], bool], str]:
    return lambda v: least <= v <= most, f"a whole number from {least} to {most}"


_LARGEST = 1e38  # what float32 can hold
_FRACTION = (lambda v: 0 <= v <= 1 - 1e-7, "from 0 to 1 - 1e-7, below 1 in float32")
_ABOVE_0 = (lambda v: 0 < v <= _LARGEST, f"above 0 and at most {_LARGEST}")
_FROM_0 = (lambda v: 0 <= v <= _LARGEST, f"from 0 to {_LARGEST}")
_OPTIMIZERS = ("adam", "muon")
_DTYPES = ("auto", "float32", "bfloat16")

# field -> (does the value work?, what would)
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    # Bounded, so that a size from an untrusted checkpoint costs neither memory nor time.
    "model.n_layer": _whole(1, 1_000),
    "model.n_head": _whole(1, 10_000),
    "model.n_embd": _whole(1, 100_000),
    "model.block_size": _whole(1, 1_000_000),
    "model.dropout": _FRACTION,
    "model.init_stddev": _ABOVE_0,
    "model.compute_dtype": (lambda v: v in _DTYPES, f"one of {', '.join(_DTYPES)}"),
    "data.path": (lambda v: "\0" not in v, "a file name, without a null byte"),
    "data.batch_size": _whole(1, 1_000_000),
    "optimizer.name": (lambda v: v in _OPTIMIZERS, f"one of {', '.join(_OPTIMIZERS)}"),
    "optimizer.learning_rate": _ABOVE_0,
    "optimizer.final_learning_rate": _FROM_0,
    "optimizer.warmup_steps": _whole(0),
    "optimizer.b1": _FRACTION,
    "optimizer.b2": _FRACTION,
    "optimizer.eps": _ABOVE_0,
    "optimizer.clip_norm": _ABOVE_0,
    "optimizer.weight_decay": _FROM_0,
    "optimizer.adam_weight_decay": _FROM_0,
    "optimizer.max_skipped_updates": _whole(0),
    "train.num_steps": _whole(1),
    "train.eval_every": _whole(1),
    "train.seed": _whole(0),
    "train.steps_per_dispatch": _whole(1),
    "train.keep_checkpoints": _whole(1),
    "train.sample_length": _whole(0),
    "mesh.data": (lambda v: v == -1 or 1 <= v < 2**31, "1 or above, or -1 for all that are left"),
    "mesh.fsdp": _whole(1),
}


def allowed(field: str) -> str:
    """Tell in words which values a field takes; `field` as in "model.n_layer"."""
    return _RULES[field][1]


def validate(config: Config) -> None:
    """Refuse values that cannot work.

    Raises:
        UserError: naming the field, the value given and what would be right.
    """
    for path, (works, right) in _RULES.items():
        section, name = path.split(".")
        value = getattr(getattr(config, section), name)
        kind = type(getattr(getattr(_DEFAULTS, section), name))
        if type(value) not in (kind, int if kind is float else kind) or not works(value):
            raise UserError(f"config.{path} is {value!r:.80}; it must be {right}")
    opt = config.optimizer
    if opt.final_learning_rate > opt.learning_rate:
        right = f"at most learning_rate ({opt.learning_rate})"
        raise UserError(
            f"config.optimizer.final_learning_rate is {opt.final_learning_rate}; it must be {right}"
        )
    if opt.name != "muon" and opt.adam_weight_decay:
        right = f"0 with {opt.name}, which takes weight_decay"
        raise UserError(
            f"config.optimizer.adam_weight_decay is {opt.adam_weight_decay}; it must be {right}"
        )
    model = config.model
    if model.n_embd % model.n_head:
        right = f"a multiple of n_head ({model.n_head})"
        raise UserError(f"config.model.n_embd is {model.n_embd}; it must be {right}")


_DEFAULTS = Config()
