"""The fields of a JSON object that a client sends, and values in messages about them."""

import json
from typing import Any

from shakegpt_jax.serving.api_error import ApiError

_SHOWN = 60  # characters of a value in a message


class Fields:
    """The fields of a request; each is taken once, and what is left is unknown."""

    def __init__(self, body: dict[str, Any]):
        self._left = {name: value for name, value in body.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str) -> Any:
        """Return the value of a field; None: absent or null."""
        return self._left.pop(name, None)

    def integer(
        self, name: str, default: Any, least: int, most: int, *, positive: bool = False
    ) -> Any:
        """Return a whole number; `positive`: 0 is not allowed although `least` is."""
        if (value := self.take(name)) is None:
            return default
        right = f"from {least + positive} to {most}"
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise ApiError(
                f"{name} is {show(value)}; it must be a whole number {right}", param=name
            )
        if not least + positive <= value <= most:
            raise ApiError(f"{name} is {show(value)}; it must be {right}", param=name)
        return value

    def number(
        self, name: str, default: float, least: float, most: float, *, positive: bool = False
    ) -> float:
        """Return a number; `positive`: 0 is not allowed."""
        if (value := self.take(name)) is None:
            return default
        right = f"above 0 and at most {most:g}" if positive else f"from {least:g} to {most:g}"
        if type(value) not in (int, float):
            raise ApiError(f"{name} is {show(value)}; it must be a number {right}", param=name)
        if not least <= value <= most or (positive and float(value) < 1e-30):
            raise ApiError(f"{name} is {show(value)}; it must be {right}", param=name)
        return float(value)

    def boolean(self, name: str) -> bool:
        """Return true or false; absent: false."""
        value = self.take(name)
        if value is not None and type(value) is not bool:
            raise ApiError(f"{name} is {show(value)}; it must be true or false", param=name)
        return bool(value)

    def finish(self) -> None:
        """Refuse what has not been taken."""
        if self._left:
            name = min(self._left)
            raise ApiError(f"the field {show(name)} is not known here: leave it out", param=name)


def show(value: Any) -> str:
    """Return a value as JSON, for a message."""
    try:
        return shorten(json.dumps(value))
    except RecursionError:  # it recurses deeper than json.loads
        return "nested too deeply"


def shorten(text: str) -> str:
    """Return the beginning of a text, for a message."""
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
