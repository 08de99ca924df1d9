"""Command-line arguments."""

import argparse
import difflib
import re
from pathlib import Path
from typing import Any, NoReturn

from shakegpt_jax.cli.settings import near_fields, set_field
from shakegpt_jax.config import Config
from shakegpt_jax.configs import NAMES, load_config
from shakegpt_jax.errors import UserError


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser whose errors are `UserError`s, with arguments that commands share."""

    _example = ""  # of an option, for a value that stands alone

    def __init__(self, prog: str, description: str = "", **options: Any):
        options |= {"usage": f"{prog} [options]", "description": description}
        super().__init__(prog, allow_abbrev=False, **options)

    def add_run(self) -> None:
        """Add --workdir: which trained run."""
        help_text = "run folder; default: the newest in runs/"
        self.add_argument("--workdir", type=named, action=StoreOnce, help=help_text)
        self._example = "--workdir RUN, and a text with spaces is quoted"

    def add_runs(self) -> None:
        """Add RUN and --workdir: which trained runs."""
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
        group = self.add_argument_group("several processes")
        add = group.add_argument
        add(
            "--distributed",
            action="store_true",
            help="train with all processes that SLURM or Open MPI has started",
        )
        add("--coordinator_address", metavar="HOST:PORT", help="of process 0, without a launcher")
        add("--num_processes", metavar="N", type=int, help="how many, without a launcher")
        add("--process_id", metavar="I", type=int, help="this one, from 0, without a launcher")
        add(
            "--heartbeat_seconds",
            metavar="SECONDS",
            type=_heartbeat,
            default=30,
            help="after how long without a sign a process is lost (30)",
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all arguments."""
        return self._complete(*self.parse_known_args(args, namespace))

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all arguments, options also between those without a name."""
        return self._complete(*self.parse_known_intermixed_args(args, namespace))

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        raise UserError(f"{message} (--help lists the arguments)")

    def _complete(self, args: argparse.Namespace, unknown: list[str]) -> argparse.Namespace:
        """Return the arguments, or say what the first unknown one may mean."""
        if not unknown:
            return args
        option = unknown[0].partition("=")[0]
        if not option.startswith("-"):
            example = self._example and f"; a value follows an option, as in {self._example}"
            self.error(f"unexpected argument {unknown[0]!r}{example}")
        name = option.lstrip("-")
        known = re.findall(r"^ +(?:-h, )?--(\w+)(?!\S)", self.format_help(), re.MULTILINE)
        near = [each for each in known if each.startswith(name)]
        near = near or difflib.get_close_matches(name, known, n=1)
        if not near and "config" in known:
            near = [f"config.{field}" for field in near_fields(name)]
        advice = f"; did you mean --{' or --'.join(near)}?" if near else ""
        self.error(f"no option {option}{advice}")


class ConfigArgumentParser(ArgumentParser):
    """A parser with --config and one --config.section.field argument per config field."""

    def parse_config(self) -> tuple[argparse.Namespace, Config, str]:
        """Parse the arguments; --help shows the values of the config.

        Returns:
            The other arguments, the frozen config, and its name.
        """
        # --config comes first: the file's values are the defaults of the other arguments.
        file_parser = ArgumentParser(self.prog, add_help=False)
        for parser in (file_parser, self):
            help_text = f"{', '.join(NAMES)}, or a Python file (cpu)"
            parser.add_argument("--config", metavar="CONFIG", default="cpu", help=help_text)
        source = file_parser.parse_known_args()[0].config
        config = load_config(source)
        self._example = "--config cpu"
        group = self.add_argument_group("config fields, with the values of the config")
        for name, field, value in config.fields():
            meaning = f"{field.metadata['meaning']} ({value!r})".replace("%", "%%")
            group.add_argument(f"--config.{name}", metavar="VALUE", help=meaning)
        args, unknown = self.parse_known_args()
        for argument in unknown:
            if argument.startswith("--config."):
                set_field(config, argument.removeprefix("--config.").partition("=")[0], "")
        self._complete(args, unknown)
        for name, _, _ in config.fields():
            if (text := vars(args)[f"config.{name}"]) is not None:
                set_field(config, name, text)
        return args, config.freeze(), Path(source).stem


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


def _heartbeat(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 5 <= int(text) <= 3_600):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 5 to 3600")
    return int(text)


def _step(text: str) -> int | str:
    if text in ("best", "latest"):
        return text
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not best, latest or a number")
    return int(text)
