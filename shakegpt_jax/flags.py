"""A config file and its overrides, from the command line."""

import difflib
import itertools
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from shakegpt_jax.config import Config, allowed
from shakegpt_jax.errors import UserError

_DEFAULT = Path(__file__).parent.parent / "configs" / "cpu.py"


def parse_flags(argv: list[str]) -> tuple[Config, str]:
    """Fill in all absl flags, `--config` and its fields among them; `--help` prints and exits.

    Args:
        argv: the program's name and its arguments.

    Returns:
        The config, frozen, and the name of its file without folder and ending.

    Raises:
        UserError: if a flag is unknown or its value refused, or the config cannot be loaded.
    """
    fields = {
        f"{section}.{name}": value
        for section, values in Config().to_dict().items()
        for name, value in values.items()
    }
    if {"--help", "-h", "-help"} & set(argv):
        app.usage(shorthelp=True, writeto_stdout=True)
        print("  --config: a Python file with get_config(), such as configs/base.py")
        print("    (default: configs/cpu.py)")
        print("\nfields that a config or a flag can set, and what they are else:")
        print("\n".join(f"  --config.{name}={value}" for name, value in fields.items()))
        sys.exit(0)
    path = _config_path(argv)
    if not Path(path).is_file():
        if Path(path).is_dir():
            raise UserError(f"{path!r} is a folder; give a config file such as configs/cpu.py")
        raise UserError(f"no such config file: {path!r}; give one such as configs/cpu.py")
    for arg in argv:
        flag, equals, text = arg.lstrip("-").partition("=")
        if not arg.startswith("-") or not flag.startswith("config."):
            continue
        if (field := flag.removeprefix("config.")) not in fields:
            near = difflib.get_close_matches(field, fields, n=1) or ["one of " + ", ".join(fields)]
            raise UserError(f"no config field {field}; did you mean {near[0]}?")
        try:
            if equals and isinstance(fields[field], int | float):
                type(fields[field])(text)
        except ValueError as error:
            raise UserError(f"config.{field} is {text!r}; it must be {allowed(field)}") from error
    try:
        # Defined here, since it already reads the file and the overrides.
        holder = config_flags.DEFINE_config_file("config", str(_DEFAULT), sys_argv=argv)
        positional = flags.FLAGS(argv)[1:]
        config = holder.value
        is_config = isinstance(config, Config)
    except flags.Error as error:
        if "Traceback" in str(error):  # from the config file
            reason = str(error).strip().split("\n")[-1]
            raise UserError(f"cannot load the config {path}: {reason}") from error
        raise UserError(" ".join(str(error).split())) from error
    except (Exception, SystemExit) as error:  # it is Python: anything can go wrong in it
        reason = str(error).strip().split("\n")[-1]
        raise UserError(
            f"cannot load the config {path}: {type(error).__name__}: {reason}"
        ) from error
    if not is_config:
        raise UserError(f"get_config() of {path} must return a shakegpt_jax.config.Config")
    if positional:
        raise UserError(f"unexpected argument {positional[0]!r}; flags start with --")
    return config.freeze(), Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


def _config_path(argv: list[str]) -> str:
    """Find the config file's name, which absl would tell only after it has run the file."""
    path = str(_DEFAULT)
    for arg, following in itertools.pairwise([*argv, ""]):
        flag, equals, value = arg.partition("=")
        if flag in ("--config", "-config"):
            path = value if equals else following
    return path
