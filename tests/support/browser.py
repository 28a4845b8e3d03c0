"""Finds a Chromium for the tests of the explorer, and says how to get one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
REQUIRED = "REQUIRE_BROWSER"
"""The environment variable that turns the skip of tests without a browser into a failure; CI sets it to 1."""

MISSING = "no Chromium was found"
HOW_TO_GET_ONE = "install one: apt-get install chromium, or .venv/bin/python -m playwright install chromium"


def browser_path(playwrights: Path, path: str | None = None) -> Path | None:
    """Return a Chromium on the search path, else Playwright's own if it is installed, else None.

    path: the search path; default: that of the environment.
    """
    found = next(filter(None, (shutil.which(name, path=path) for name in NAMES)), None)
    if found is not None:
        return Path(found)
    return playwrights if playwrights.is_file() else None


def without_browser(environ: Mapping[str, str] = os.environ) -> None:
    """Skip the current test; fail it where a browser is required."""
    if environ.get(REQUIRED) == "1":
        pytest.fail(f"{MISSING}, and {REQUIRED}=1 requires one; {HOW_TO_GET_ONE}")
    pytest.skip(MISSING)


def skipped_line(reports: list[pytest.TestReport]) -> str | None:
    """Return the line that ends a run in which tests were skipped for want of a browser; None if there was none."""
    count = sum(MISSING in str(report.longrepr) for report in reports)
    if not count:
        return None
    return f"NOT TESTED: the explorer in a browser ({count} skipped), because {MISSING}; {HOW_TO_GET_ONE}."
