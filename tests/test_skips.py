"""Skipped tests fail where SHAKEGPT_NO_SKIPS is set."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.fixture
def missing():
    pytest.importorskip("no_such_package")

def test_package(missing): ...
def test_browser(): pytest.skip("needs apt-get install chromium")
def test_root(): pytest.skip("needs root")
@pytest.mark.skipif(True, reason="needs Linux")
def test_linux(): ...
@pytest.mark.xfail
def test_expected(): assert False
def test_passes(): ...
"""
MODULE = "import pytest; pytest.importorskip('no_such_package')"


@pytest.mark.parametrize(
    ("value", "counts"),
    [
        ("", {"passed": 1, "skipped": 5, "xfailed": 1}),
        ("1", {"passed": 1, "skipped": 2, "xfailed": 1, "failed": 1, "errors": 2}),
    ],
)
def test_missing_packages_fail_and_missing_rights_do_not(tmp_path, value, counts):
    (tmp_path / "test_inside.py").write_text(TESTS)
    (tmp_path / "test_module.py").write_text(MODULE)
    options = ("-p", "skips", "-p", "no:cacheprovider", "-c", os.devnull)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--continue-on-collection-errors", tmp_path],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "SHAKEGPT_NO_SKIPS": value},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"(\d+) (\w+)[, ]", done.stdout.splitlines()[-1])
    assert {name: int(count) for count, name in found if name != "in"} == counts, done.stdout
    assert done.returncode == bool(value)
