"""One HTML file from a template, styles, a script and data, that loads nothing else."""

import base64
import hashlib
import html
import os
import re
import string
import urllib.parse
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from shakegpt_jax.cli.command import dump_json
from shakegpt_jax.errors import UserError

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([\w.]+)";\n', re.MULTILINE)


def render_page(
    name: str, script: str, title: str, data: Any, *, connect: str = "'none'"
) -> tuple[str, str]:
    """Return a page as HTML, and its content security policy, to send as a header too.

    `static` has its template `name`.html, its style `name`.css and its script. The policy allows
    them and connections to `connect`. The script reads the data from the element `data`.
    """
    styles, module = _read("common.css") + _read(f"{name}.css"), bundle(script)
    policy = (
        f"default-src 'none'; style-src '{_digest(styles)}'; script-src '{_digest(module)}'; "
        f"img-src data:; connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    # With < escaped, no text can end the element. JSON is ASCII here.
    text = dump_json(data).replace("<", "\\u003c")
    icon = f"data:image/svg+xml,{urllib.parse.quote(_read('icon.svg'))}"
    page = string.Template(_read(f"{name}.html")).substitute(
        policy=policy, title=html.escape(title), icon=icon, style=styles, script=module, data=text
    )
    return page, policy


def bundle(script: str) -> str:
    """Return a module in `static` and all that it imports as one: inline, it can import nothing.

    The modules share one scope, in which a name that two of them define is a syntax error.
    """
    done: dict[str, str] = {}

    def add(name: str) -> None:
        text = _read(name)
        for imported in _IMPORT.findall(text):
            if imported not in done:
                add(imported)
        done[name] = re.sub("^export ", "", _IMPORT.sub("", text), flags=re.MULTILINE)

    add(script)
    return "\n".join(done.values())


def encode_array(array: np.ndarray) -> str:
    """Return the little-endian bytes of an array in base64."""
    little_endian = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(little_endian.tobytes()).decode()


def check_page_path(path: str | Path, *, replace: bool = True) -> None:
    """Raise a UserError if a page cannot be written there; called before the page is computed."""
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise UserError(f"cannot write the page {path}: give a file such as report.html")
    if not path.parent.is_dir():
        raise UserError(f"cannot write the page {path}: no such folder: {path.parent}")
    if not all(os.access(each, os.W_OK) for each in (path.parent, path) if each.exists()):
        raise UserError(f"cannot write the page {path}: Permission denied")
    if path.exists() and not replace:
        raise UserError(f"{path} exists; --force replaces it")


def write_page(page: str, path: str | Path) -> None:
    """Write all of a page to a file, or raise a UserError and write nothing."""
    target = Path(path).resolve()
    beside = target.with_name(f".page-{os.getpid()}")
    try:
        beside.write_text(page, encoding="utf-8", newline="\n")
        beside.replace(target)
    except OSError as error:
        raise UserError(f"cannot write the page {path}: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)


def _read(name: str) -> str:
    return (resources.files("shakegpt_jax.web") / "static" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
