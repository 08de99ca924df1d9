"""The package's own configs, and loading a config: a Python file that defines get_config()."""

import runpy
from pathlib import Path

from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError

_FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in _FOLDER.glob("[a-z]*.py"))


def load_config(name: str) -> Config:
    """Return the config, not frozen yet, of the package by its name, such as "cpu", or of a file.

    Raises:
        UserError: if there is no such config, or the file fails or defines no get_config() that
            returns a `Config`.
    """
    path = str(_FOLDER / f"{name}.py") if name in NAMES else name
    if not (path.endswith(".py") and Path(path).is_file()):
        problem = "is not a Python file" if Path(path).exists() else "does not exist"
        right = f"give a Python file or one of {', '.join(NAMES)}"
        if Path(f"{name}.py").is_file():
            right = f"did you mean {name}.py?"
        raise UserError(f"the config {name!r} {problem}; {right}")
    try:
        get_config = runpy.run_path(path).get("get_config")  # leaves no __pycache__ behind
        config = get_config() if callable(get_config) else None
    except (Exception, SystemExit) as error:  # it is Python: anything can go wrong in it
        reason = str(error).strip().split("\n")[-1]
        message = f"cannot load the config {path}: {type(error).__name__}: {reason}"
        raise UserError(message) from error
    kinds = [type(section) for section in Config().sections.values()]
    if not isinstance(config, Config) or [*map(type, config.sections.values())] != kinds:
        right = "a shakegpt_jax.config.Config with its sections"
        raise UserError(f"the config {path} must define get_config(), which returns {right}")
    return config.copy()
