"""The documentation as a site: it builds without warnings, and loads nothing from another host."""

import functools
import http.server
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from browser import chromium

ROOT = Path(__file__).parent.parent
LOADED = "return performance.getEntriesByType('resource').map((entry) => entry.name)"


@pytest.mark.slow
def test_site_builds_strictly_and_loads_only_its_own_files(tmp_path):
    pytest.importorskip("mkdocs", reason="needs pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    pages = [page.name for page in tmp_path.glob("*.html") if page.name != "404.html"]
    assert {p.stem for p in (ROOT / "docs").glob("*.md")} < {Path(page).stem for page in pages}
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        chromium() as chrome,
    ):
        threading.Thread(target=server.serve_forever).start()
        try:
            host = f"http://127.0.0.1:{server.server_port}/"
            for page in pages:
                chrome.get(host + page)
                loaded = chrome.execute_script(LOADED)
                assert loaded and all(name.startswith((host, "data:")) for name in loaded), page
        finally:
            server.shutdown()
