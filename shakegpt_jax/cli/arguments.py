"""Command-line arguments."""

import argparse
import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from shakegpt_jax.config import Config
from shakegpt_jax.configs import NAMES, load_config
from shakegpt_jax.errors import UserError

# What other programs call a field; names that are spelt alike are found without this table.
_SYNONYMS = {
    "n_layer": "depth num_hidden_layers",
    "n_embd": "width dim d_model hidden hidden_size embed_dim",
    "block_size": "context context_length ctx n_ctx seq_len sequence_length window",
    "compute_dtype": "dtype precision",
    "path": "data text file dataset",
    "batch_size": "batch bs",
    "name": "optimizer",
    "learning_rate": "lr max_lr",
    "final_learning_rate": "min_lr final_lr",
    "decay": "schedule scheduler lr_schedule",
    "b1": "beta1 momentum",
    "b2": "beta2",
    "eps": "epsilon",
    "clip_norm": "grad_clip max_grad_norm",
    "weight_decay": "wd",
    "accumulate_steps": "grad_accum",
    "num_steps": "steps iters max_iters iterations epochs",
}
_BOOLEANS = {"true": True, "false": False}


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser whose errors are `UserError`s, with arguments that commands share."""

    _example = ""  # of an option, for a value that stands alone
    _has_runs = False  # options may come between them

    def __init__(self, prog: str, description: str | None = None, **options: Any):
        super().__init__(prog, f"{prog} [options]", description, allow_abbrev=False, **options)

    def add_run(self) -> None:
        """Add --workdir: which trained run."""
        help_text = "run folder; default: the newest in runs/"
        self.add_argument("--workdir", type=named, action=StoreOnce, help=help_text)
        self._example = "--workdir RUN, and a text with spaces is quoted"

    def add_runs(self) -> None:
        """Add RUN and --workdir: which trained runs."""
        self._has_runs = True
        self.usage = f"{self.prog} [RUN ...] [options]"
        help_text = "the same as --workdir RUN"
        self.add_argument("runs", metavar="RUN", nargs="*", type=named, help=help_text)
        help_text = "run folder, or folder of runs; repeatable; default: the newest in runs/"
        self.add_argument("--workdir", default=[], action="append", type=named, help=help_text)

    def add_step(self) -> None:
        """Add --step: which checkpoint of the run."""
        help_text = "checkpoint: best (default), latest or a step"
        self.add_argument("--step", type=_step, default="best", help=help_text)

    def add_processes(self) -> None:
        """Add --distributed and what describes this process of several."""
        add = self.add_argument_group("several processes").add_argument
        help_text = "train with all processes that SLURM or Open MPI has started"
        add("--distributed", action="store_true", help=help_text)
        add("--coordinator_address", metavar="HOST:PORT", help="of process 0, if no launcher says")
        add("--num_processes", metavar="N", type=int, help="processes, if no launcher says")
        add("--process_id", metavar="I", type=int, help="this process, from 0, if no launcher says")
        kind = whole_number(5, 3_600)
        help_text = "seconds without a heartbeat before a process counts as lost (30)"
        add("--heartbeat_seconds", metavar="SECONDS", type=kind, default=30, help=help_text)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        raise UserError(f"{message} (--help lists the arguments)")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all arguments, or say what the first unknown one may mean."""
        options = [name.removeprefix("--") for name in self._option_string_actions]

        def spell(argument: str) -> str:  # --top-k and --top-k=5 as --top_k is declared
            name, equals, value = argument.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            is_option = argument.startswith("--") and name in options
            return f"--{name}{equals}{value}" if is_option else argument

        parse = self.parse_known_intermixed_args if self._has_runs else self.parse_known_args
        parsed, unknown = parse([*map(spell, sys.argv[1:] if args is None else args)], namespace)
        if not unknown:
            return parsed
        option = unknown[0].partition("=")[0]
        if not option.startswith("-"):
            example = self._example and f"; a value follows an option, as in {self._example}"
            self.error(f"unexpected argument {unknown[0]!r}{example}")
        name = option.lstrip("-").replace("-", "_")
        known = [each for each in options if "." not in each]
        near = [each for each in known if each.startswith(name)]
        near = near or difflib.get_close_matches(name, known, n=1)
        if "config" in known and (not near or "." in name):
            near = [f"config.{field}" for field in near_fields(name)]
        advice = f"; did you mean --{' or --'.join(near)}?" if near else ""
        self.error(f"no option {option}{advice}")


class ConfigArgumentParser(ArgumentParser):
    """A parser with --config and one --config.section.field argument per config field."""

    def parse_config(self) -> tuple[argparse.Namespace, Config, str]:
        """Return the arguments, the frozen config, whose values --help shows, and its name."""
        # --config comes first: the file's values are the defaults of the other arguments.
        file_parser = ArgumentParser(self.prog, add_help=False)
        for parser in (file_parser, self):
            help_text = f"{', '.join(NAMES)}, or a Python file (cpu)"
            parser.add_argument("--config", metavar="CONFIG", default="cpu", help=help_text)
        source = file_parser.parse_known_args()[0].config
        config = load_config(source)
        self._example = "--config cpu"
        group = self.add_argument_group("config fields, with the values of the config")
        for path, field, value in config.fields():
            meaning = f"{field.metadata['meaning']} ({value!r})".replace("%", "%%")
            group.add_argument(f"--config.{path}", metavar="VALUE", help=meaning)
        args = self.parse_args()
        changes = {}
        for path, field, _ in config.fields():
            if (text := vars(args)[f"config.{path}"]) is None:
                continue
            kind: Any = type(field.default)
            try:
                changes[path] = _BOOLEANS[text.lower()] if kind is bool else kind(text)
            except (KeyError, ValueError) as error:
                right = field.metadata["rule"].description
                raise UserError(f"config.{path} is {text!r}; it must be {right}") from error
        return args, config.replace(changes), Path(source).stem


def near_fields(path: str) -> list[str]:
    """Return the fields that an unknown path may mean: by name, by synonym, by spelling."""
    meant: dict[str, list[str]] = {}
    for each, field, _ in Config().fields():
        for word in (field.name, *_SYNONYMS.get(field.name, "").split()):
            meant.setdefault(word, []).append(each)
    name = path.rpartition(".")[2].lower()
    words = [name] if name in meant else difflib.get_close_matches(name, meant, n=1)
    return [each for word in words for each in meant[word]]


class StoreOnce(argparse.Action):
    """Stores a value, and rejects a repeated option, of which argparse would keep the last."""

    _used = False

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        """Store the value, or report that there is one already."""
        if self._used:
            parser.error(f"{option_string} is given twice")
        self._used = True
        setattr(namespace, self.dest, values)


def named(text: str) -> str:
    """Reject an empty name, such as that of an unset shell variable."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return an argparse type that accepts whole numbers from `least` to `most`."""

    def convert(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            right = f"a whole number from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {right}")
        return int(text)

    return convert


def _step(text: str) -> int | str:
    if text in ("best", "latest"):
        return text
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not best, latest or a number")
    return int(text)
