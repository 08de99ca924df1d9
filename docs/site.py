"""A hook of MkDocs: the files at the top of the repository become pages, README.md the first."""

import re
from pathlib import Path

from mkdocs.structure.files import File

_ROOT = Path(__file__).parent.parent
_PAGES = {"index.md": "README.md", "CHANGELOG.md": "CHANGELOG.md"}


def on_files(files, config):
    """Add the pages, with links that start from docs/, as those of its other files do."""
    for page, source in _PAGES.items():
        text = (_ROOT / source).read_text().replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))


def on_page_markdown(markdown, page, config, files):
    """Name files of the package without a link, since the site does not hold them."""
    markdown = re.sub(r"\[([^\]]+)\]\(\.\./shakegpt_jax/[^)]*\)", r"`\1`", markdown)
    return markdown.replace("](../README.md", "](index.md")
