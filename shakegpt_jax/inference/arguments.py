"""Validation of the arguments of the Python API.

Python, NumPy and JAX scalars are all accepted, booleans are not.
"""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from shakegpt_jax.errors import UserError


def require(holds: bool, name: str, value: object, right: str) -> None:
    """Raise a `UserError` unless a condition holds; `right` completes "it must be ..."."""
    if not holds:
        raise UserError(f"{name} is {value!r}; it must be {right}")


def as_integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return an integer argument as int.

    Raises:
        UserError: if it is not an integer or not between `least` and `most`.
    """
    right = f"{least} or more" if most is None else f"from {least} to {most}"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    require(
        number is not None and not isinstance(value, bool), name, value, f"a whole number, {right}"
    )
    require(least <= number and (most is None or number <= most), name, number, right)  # type: ignore[operator]
    return number  # type: ignore[return-value]


def as_number(name: str, value: Any, least: float, most: float, right: str) -> float:
    """Return a numeric argument as float.

    Raises:
        UserError: if it is not a number or not between `least` and `most`; `right` says what
            would be.
    """
    is_number = not isinstance(value, bool | str | bytes) and np.ndim(value) == 0
    try:
        number = float(value) if is_number else None
    except (TypeError, ValueError, OverflowError):
        number = None
    require(number is not None and least <= number <= most, name, value, right)
    return number  # type: ignore[return-value]


def as_seeds(seed: Any, count: int) -> list[int]:
    """Return one seed per prompt, from one seed for all or a sequence of them.

    Raises:
        UserError: if a seed is not an integer from 0 to 2**32 - 1, or their number is wrong.
    """
    several = isinstance(seed, list | tuple | range) or getattr(seed, "ndim", 0) == 1
    seeds = [*seed] if several else [seed] * count
    if len(seeds) != count:
        raise UserError(f"seed has {len(seeds)} values; give one, or one per prompt ({count})")
    return [as_integer("seed", each, 0, 2**32 - 1) for each in seeds]


def as_texts(name: str, value: Any) -> Sequence[str]:
    """Return a list of texts.

    Raises:
        UserError: if it is not a list of non-empty strings, or empty.
    """
    are_texts = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
    require(are_texts, name, value, "a list of texts")
    require(len(value) > 0, name, value, "one text or more")
    require(all(value), name.removesuffix("s"), "", "one character or more")
    return value
