"""The documentation as a site: it builds without warnings, and loads nothing from another host."""

import subprocess
import sys
from pathlib import Path

import pytest
from browser import chromium

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_site_builds_strictly_and_loads_only_its_own_files(tmp_path):
    pytest.importorskip("mkdocs", reason="needs pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    pages = [*tmp_path.glob("*.html")]
    assert {p.stem for p in (ROOT / "docs").glob("*.md")} < {page.stem for page in pages}
    with chromium() as chrome:
        for page in pages:
            chrome.get(page.as_uri())
            entries = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
            loaded = chrome.execute_script(entries)
            assert loaded and all(name.startswith(("file:", "data:")) for name in loaded), page
