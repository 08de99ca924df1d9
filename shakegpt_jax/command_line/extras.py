"""Optional packages, which the extras in pyproject.toml install."""

import importlib
from typing import Any

from shakegpt_jax.errors import UserError


def import_extra(module: str, *, extra: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: its name, such as "safetensors.numpy".
        extra: what installs the package.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise UserError(f"this needs {package}: pip install -e '.[{extra}]'") from error
