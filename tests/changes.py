"""Edits to files that other tools wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def replaced(value: Any, *keys: str) -> Callable[[dict[str, Any]], None]:
    """Return a change: one value, at a path of keys."""

    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def removed(*keys: str) -> Callable[[dict[str, Any]], None]:
    """Return a change: no value at a path of keys."""

    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON object in a file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
