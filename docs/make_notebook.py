"""Write guide.ipynb from guide.md, executed: python docs/make_notebook.py."""

import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NOTEBOOK = FOLDER / "guide.ipynb"


def cells() -> list[tuple[str, str]]:
    """Return the type and the source of each cell: the blocks of Python, and what is between."""
    guide = (FOLDER / "guide.md").read_text(encoding="utf-8")
    parts = re.split(r"^```python\n(.*?)^```$", guide, flags=re.MULTILINE | re.DOTALL)
    return [("code" if i % 2 else "markdown", part.strip()) for i, part in enumerate(parts)]


def make_notebook() -> Any:
    """Return the notebook with its outputs, as nbformat represents it."""
    import nbclient
    from nbformat import v4

    makers = {"code": v4.new_code_cell, "markdown": v4.new_markdown_cell}
    made = [makers[kind](part, id=f"cell-{i}") for i, (kind, part) in enumerate(cells())]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = v4.new_notebook(cells=made, metadata={"kernelspec": kernel})
    nbclient.NotebookClient(notebook, timeout=300, record_timing=False).execute()
    return notebook


if __name__ == "__main__":
    import nbformat

    nbformat.write(make_notebook(), NOTEBOOK)
