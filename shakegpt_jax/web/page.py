"""One HTML file from a template, styles, scripts and data, that loads nothing else.

Its content security policy allows the styles and scripts in the file, and nothing else, except
connections where the page names a place.
"""

import base64
import hashlib
import html
import json
import os
import string
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from shakegpt_jax.errors import UserError

_SUFFIXES = (".html", ".htm")


def render_page(
    template: str,
    styles: Sequence[str],
    scripts: Sequence[str],
    title: str,
    data: Any,
    *,
    connect: str = "'none'",
) -> tuple[str, str]:
    """Return a page as HTML, and its content security policy, to send as a header too.

    Args:
        template: file in `static` with the places $policy, $title, $style, $data and $script.
        styles: CSS files in `static`.
        scripts: JavaScript files in `static`, in order.
        title: any text.
        data: anything that JSON can hold; the scripts read it from the element `data`.
        connect: where the scripts may connect to, as a source of the content security policy.
    """
    style, script = ("\n".join(map(_read, names)) for names in (styles, scripts))
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    # With < escaped, no text can end the element. JSON is ASCII here.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = string.Template(_read(template)).substitute(
        policy=policy, title=html.escape(title), style=style, script=script, data=text
    )
    return page, policy


def encode_array(array: np.ndarray) -> str:
    """Return the little-endian bytes of an array in base64."""
    little_endian = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(little_endian.tobytes()).decode()


def check_page_path(path: str | Path) -> None:
    """Raise a UserError if a page cannot be written there, as far as can be known before."""
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES or path.is_dir():
        raise UserError(f"cannot write the page {path}: give a file such as report.html")
    if not path.parent.is_dir():
        raise UserError(f"cannot write the page {path}: no such folder: {path.parent}")
    needed = [path.parent, path] if path.exists() else [path.parent]
    if not all(os.access(each, os.W_OK) for each in needed):
        raise UserError(f"cannot write the page {path}: Permission denied")


def write_page(page: str, path: str | Path) -> None:
    """Write a page to a file, all of it or nothing.

    Raises:
        UserError: if it cannot be written.
    """
    check_page_path(path)
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
