"""Configs of the package, and loading one: a Python file that defines get_config()."""

import re
import runpy
from pathlib import Path

from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError

_FOLDER = Path(__file__).parent


def config_path(name: str) -> str:
    """Return the path of a config: of the package's own by its bare name, such as "cpu"."""
    known = _FOLDER / f"{name}.py"
    return str(known) if re.fullmatch(r"[a-z]\w*", name) and known.is_file() else name


def load_config(path: str) -> Config:
    """Run a config file and return its config, not frozen yet.

    Raises:
        UserError: if the file does not exist, fails, or defines no get_config() that returns a
            `Config`.
    """
    if not path:
        raise UserError("--config is empty; give a config file such as configs/cpu.py")
    if not Path(path).is_file():
        problem = f"{path!r} is a folder" if Path(path).is_dir() else f"no such file: {path!r}"
        raise UserError(f"{problem}; give a config file such as configs/cpu.py")
    if Path(path).suffix != ".py":
        raise UserError(f"the config {path} does not end in .py; give one such as configs/cpu.py")
    try:
        get_config = runpy.run_path(path).get("get_config")  # leaves no __pycache__ behind
        config = get_config() if callable(get_config) else None
    except (Exception, SystemExit) as error:  # it is Python: anything can go wrong in it
        reason = str(error).strip().split("\n")[-1]
        message = f"cannot load the config {path}: {type(error).__name__}: {reason}"
        raise UserError(message) from error
    if not callable(get_config):
        raise UserError(f"the config {path} does not define get_config()")
    if not isinstance(config, Config):
        raise UserError(f"get_config() of {path} must return a shakegpt_jax.config.Config")
    for name, default in vars(Config()).items():
        if not isinstance(section := getattr(config, name), type(default)):
            right = f"must be of type {type(default).__name__}"
            raise UserError(f"config.{name} of {path} is {section!r}; it {right}")
    return config.copy()
