"""Run configuration: every setting with its default, its meaning and the values it accepts."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

from shakegpt_jax.errors import UserError

# Fields added after the first release. Older checkpoints lack them, and their defaults keep the old
# behavior. List every new field here.
_ADDED_FIELDS = {
    "model": {"remat", "activation", "bias"},
    "data": {"replacement"},
    "optimizer": {"adam_weight_decay", "decay", "nesterov"},
    "train": {"accumulate_steps", "eval_characters", "init_from", "target_loss", "tracker"},
    "mesh": {"tensor"},
}

# Settings that only some optimizers use; with the others, they must have their defaults.
_ONLY_WITH = {"nesterov": {"adam"}, "adam_weight_decay": {"muon"}}


class Rule(NamedTuple):
    """Which values a field accepts."""

    accepts: Callable[[Any], bool]
    description: str  # completes "it must be ..."


def _integer(least: int, most: int = 2**31 - 1) -> Rule:
    return Rule(lambda v: least <= v <= most, f"a whole number from {least} to {most}")


def _one_of(*names: str) -> Rule:
    return Rule(lambda v: v in names, f"one of {', '.join(names)}")


_LARGEST = 1e38  # about the largest float32
_FRACTION = Rule(lambda v: 0 <= v <= 1 - 1e-7, "from 0 to 1 - 1e-7, below 1 in float32")
_POSITIVE = Rule(lambda v: 0 < v <= _LARGEST, f"above 0 and at most {_LARGEST}")
_NONNEGATIVE = Rule(lambda v: 0 <= v <= _LARGEST, f"from 0 to {_LARGEST}")
_PATH = Rule(lambda v: "\0" not in v, "a file name, without a null byte")
_BOOLEAN = Rule(lambda v: True, "True or False")
_MESH_AXIS = Rule(
    lambda v: v == -1 or 1 <= v < 2**31, "1 or above, or -1 for all remaining devices"
)


def _field(default: Any, meaning: str, rule: Rule) -> Any:
    """Declare a config field; `--help`, validation and docs/configuration.md read the metadata."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, "rule": rule})


class _Section:
    """A dataclass that can be frozen, which makes it a safe static argument of jit."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __setattr__(self, name: str, value: Any) -> None:
        if getattr(self, "_frozen", False):
            raise dataclasses.FrozenInstanceError(f"the config is frozen: cannot assign {name}")
        if name not in (fields := self.__dataclass_fields__):
            raise UserError(f"no config field {name}; valid fields: {', '.join(fields)}")
        super().__setattr__(name, value)


@dataclasses.dataclass(unsafe_hash=True)
class ModelConfig(_Section):
    """Shape of the decoder. The defaults have 85 million parameters."""

    # Sizes are bounded so that a corrupt checkpoint cannot ask for endless memory or time.
    n_layer: int = _field(12, "number of blocks", _integer(1, 1_000))
    n_head: int = _field(8, "attention heads per block", _integer(1, 10_000))
    n_embd: int = _field(768, "embedding dimensions, a multiple of n_head", _integer(1, 100_000))
    block_size: int = _field(128, "context window, characters", _integer(1, 1_000_000))
    dropout: float = _field(0.0, "dropout rate of embeddings and residual branches", _FRACTION)
    init_stddev: float = _field(0.02, "standard deviation of the initial weights", _POSITIVE)
    compute_dtype: str = _field(
        "auto",
        "dtype of linear layers and of the residual stream; bf16_bf16_f32: bfloat16 operands and "
        "float32 results; auto: this on CPUs with AMX, float32 on others, bfloat16 on accelerators",
        _one_of("auto", "float32", "bfloat16", "bf16_bf16_f32"),
    )
    remat: bool = _field(
        False, "recompute the blocks in the backward pass: less memory, more time", _BOOLEAN
    )
    activation: str = _field(
        "gelu_tanh",
        "GELU of the MLPs: its tanh approximation, as in GPT-2, or exact, as in nanoGPT",
        _one_of("gelu_tanh", "gelu_exact"),
    )
    bias: bool = _field(True, "biases of linear layers and LayerNorms, as in GPT-2", _BOOLEAN)


@dataclasses.dataclass(unsafe_hash=True)
class DataConfig(_Section):
    """Training text and batch size."""

    path: str = _field(
        "", "UTF-8 text file or prepared folder; empty: the bundled Tiny Shakespeare", _PATH
    )
    batch_size: int = _field(128, "windows per step, over all devices", _integer(1, 1_000_000))
    replacement: bool = _field(
        True, "sample windows with replacement; False: shuffle them, each once per epoch", _BOOLEAN
    )


@dataclasses.dataclass(unsafe_hash=True)
class OptimizerConfig(_Section):
    """Adam or Muon after global-norm clipping, with warmup and decay of the learning rate."""

    name: str = _field(
        "adam",
        "adam, or muon: Muon for the matrices of the blocks, Adam for the rest",
        _one_of("adam", "muon"),
    )
    learning_rate: float = _field(1e-3, "peak learning rate", _POSITIVE)
    final_learning_rate: float = _field(0.0, "where the decay ends", _NONNEGATIVE)
    warmup_steps: int = _field(100, "linear warmup steps, capped at half the run", _integer(0))
    decay: str = _field(
        "cosine", "cosine or linear decay of the learning rate", _one_of("cosine", "linear")
    )
    b1: float = _field(0.9, "Adam's decay rate of the first moment", _FRACTION)
    b2: float = _field(0.99, "Adam's decay rate of the second moment", _FRACTION)
    nesterov: bool = _field(False, "with adam: Nesterov momentum, which muon always has", _BOOLEAN)
    eps: float = _field(1e-8, "Adam's epsilon", _POSITIVE)
    clip_norm: float = _field(1.0, "maximum global norm of the gradients", _POSITIVE)
    weight_decay: float = _field(
        0.0,
        "weight decay of matrices, scaled by the learning rate; with muon: of those in blocks",
        _NONNEGATIVE,
    )
    adam_weight_decay: float = _field(
        0.0, "with muon: weight decay of the parameters that Adam updates", _NONNEGATIVE
    )
    max_skipped_updates: int = _field(
        0, "consecutive non-finite updates to skip; one more ends the run", _integer(0)
    )


@dataclasses.dataclass(unsafe_hash=True)
class TrainConfig(_Section):
    """Length of the run and what happens along the way."""

    num_steps: int = _field(5_000, "optimizer steps", _integer(1))
    init_from: str = _field(
        "", "run folder to start from, with its best parameters; empty: from scratch", _PATH
    )
    eval_every: int = _field(250, "steps between evaluations, each with a checkpoint", _integer(1))
    eval_characters: int = _field(
        2**20, "validation characters to score, evenly spread over the split; 0: all", _integer(0)
    )
    target_loss: float = _field(
        0.0, "validation loss at which to stop before num_steps; 0: never", _NONNEGATIVE
    )
    seed: int = _field(0, "seed of the parameters, windows and dropout", _integer(0))
    accumulate_steps: int = _field(
        1, "parts of a batch to process one after another: less memory", _integer(1)
    )
    steps_per_dispatch: int = _field(50, "steps per compiled call and metrics row", _integer(1))
    keep_checkpoints: int = _field(2, "latest checkpoints to keep, besides the best", _integer(1))
    sample_length: int = _field(200, "characters to sample at evaluations; 0: none", _integer(0))
    tracker: str = _field(
        "none",
        "experiment tracker that also gets the metrics",
        _one_of("none", "wandb", "trackio", "mlflow", "tensorboard"),
    )


@dataclasses.dataclass(unsafe_hash=True)
class MeshConfig(_Section):
    """Devices per mesh axis. Their product is the number of devices in use."""

    data: int = _field(-1, "data-parallel devices; -1: all that the other axes leave", _MESH_AXIS)
    fsdp: int = _field(1, "devices to shard parameters and optimizer state over", _MESH_AXIS)
    tensor: int = _field(1, "devices to shard the heads and the MLPs over", _MESH_AXIS)


@dataclasses.dataclass(unsafe_hash=True)
class Config(_Section):
    """Complete configuration of a run: mutable until `freeze` validates it."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    @property
    def sections(self) -> dict[str, Any]:
        """The sections by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def fields(self) -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
        """Yield the path ("model.n_layer"), the dataclass field and the value of every setting."""
        for name, section in self.sections.items():
            for field in dataclasses.fields(section):
                yield f"{name}.{field.name}", field, getattr(section, field.name)

    def copy(self) -> "Config":
        """Return a copy that is not frozen."""
        return Config(*map(dataclasses.replace, self.sections.values()))

    def freeze(self) -> "Config":
        """Validate the config, make it immutable and return it.

        Raises:
            UserError: if a value is not accepted. Names the field and the accepted values.
        """
        _validate(self)
        for section in (*self.sections.values(), self):
            object.__setattr__(section, "_frozen", True)
        return self

    def replace(self, changes: dict[str, Any]) -> "Config":
        """Return a frozen copy with other values, such as `{"model.n_layer": 6}`."""
        values = self.to_dict()
        for path, value in changes.items():
            section, _, name = path.partition(".")
            values.setdefault(section, {})[name] = value
        return Config.from_dict(values)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the fields as nested dicts, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, dict[str, Any]], *, recorded: bool = False) -> "Config":
        """Return the frozen config that `to_dict` of this or an older version wrote.

        With `recorded`, as in a checkpoint, settings that the optimizer ignored are not refused.
        """
        config = cls()
        config.train.eval_characters = 0  # all, as before there was a choice
        sections = config.sections
        if not isinstance(values, dict):
            raise UserError(f"the config is {values!r}, not one mapping per section")
        if values.keys() != sections.keys():
            right = f"they must be {', '.join(sections)}"
            raise UserError(f"the config has the sections {', '.join(map(str, values))}; {right}")
        for name, fields in values.items():
            if not isinstance(fields, dict):
                raise UserError(f"config.{name} is {fields!r}, not a mapping of its fields")
            needed = vars(sections[name]).keys() - _ADDED_FIELDS[name]
            if missing := needed - fields.keys():
                raise UserError(f"config.{name} lacks {', '.join(sorted(missing))}")
            for field, value in fields.items():
                setattr(sections[name], field, value)
        if recorded:
            for name in _ignored(config.optimizer):
                setattr(config.optimizer, name, getattr(OptimizerConfig, name))
        return config.freeze()


def _ignored(opt: OptimizerConfig) -> list[str]:
    """Return the settings that the chosen optimizer does not use."""
    return [name for name, optimizers in _ONLY_WITH.items() if opt.name not in optimizers]


def _require(holds: bool, path: str, value: Any, right: str) -> None:
    if not holds:
        raise UserError(f"config.{path} is {value!r:.80}; it must be {right}")


def validate_section(name: str, section: _Section) -> None:
    """Raise a `UserError` if a value of a section, such as "model", is not accepted."""
    for field in dataclasses.fields(section):
        value, kind = getattr(section, field.name), type(field.default)
        rule: Rule = field.metadata["rule"]
        is_kind = type(value) in (kind, int if kind is float else kind)
        _require(is_kind and rule.accepts(value), f"{name}.{field.name}", value, rule.description)
    if isinstance(section, ModelConfig):
        right = f"a multiple of n_head ({section.n_head})"
        holds = section.n_embd % section.n_head == 0
        _require(holds, "model.n_embd", section.n_embd, right)


def _validate(config: Config) -> None:
    for name, section in config.sections.items():
        validate_section(name, section)
    opt, batch_size = config.optimizer, config.data.batch_size
    for name in _ignored(opt):
        value, default = getattr(opt, name), getattr(OptimizerConfig, name)
        right = f"{default} with {opt.name}, which does not use it"
        right += f" (add --config.optimizer.{name}={default})"
        _require(value == default, f"optimizer.{name}", value, right)
    rest = [f"config.mesh.{name}" for name, size in vars(config.mesh).items() if size == -1]
    if len(rest) > 1:
        raise UserError(f"{' and '.join(rest)} are -1; only one can take the remaining devices")
    final, right = opt.final_learning_rate, f"at most learning_rate ({opt.learning_rate})"
    _require(final <= opt.learning_rate, "optimizer.final_learning_rate", final, right)
    n_part, right = config.train.accumulate_steps, f"a divisor of data.batch_size ({batch_size})"
    _require(batch_size % n_part == 0, "train.accumulate_steps", n_part, right)
