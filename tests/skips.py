"""In CI, where everything is installed, a skipped test is a failed one.

These are hooks of pytest, which conftest.py imports. They act if SHAKEGPT_NO_SKIPS is set.
"""

import os
from typing import TypeVar

import pytest

# What no package changes.
_ACCEPTED = ("needs root", "needs Linux")

Report = TypeVar("Report", pytest.CollectReport, pytest.TestReport)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _without_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _without_skip((yield))


def _without_skip(report: Report) -> Report:
    """Turn a skip into a failure, unless its reason is accepted or it is an expected failure."""
    is_skip = report.skipped and not hasattr(report, "wasxfail")
    if is_skip and os.environ.get("SHAKEGPT_NO_SKIPS"):
        _, _, reason = report.longrepr
        if not reason.removeprefix("Skipped: ").startswith(_ACCEPTED):
            report.outcome, report.longrepr = "failed", f"{reason} (SHAKEGPT_NO_SKIPS)"
    return report
