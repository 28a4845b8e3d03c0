"""Tests that need a browser are skipped with a visible line where there is none, and fail where one is required."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.browser import NAMES, browser_path, without_browser

ROOT = Path(__file__).parents[2]


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o755)
    return path


def test_a_browser_on_the_search_path_comes_before_playwrights(tmp_path: Path) -> None:
    playwrights = tmp_path / "ms-playwright" / "chrome"
    assert browser_path(playwrights, str(tmp_path / "bin")) is None
    executable(playwrights)
    assert browser_path(playwrights, str(tmp_path / "bin")) == playwrights
    for name in reversed(NAMES):
        found = executable(tmp_path / "bin" / name)
        assert browser_path(playwrights, str(tmp_path / "bin")) == found


def test_a_missing_browser_fails_only_where_one_is_required() -> None:
    with pytest.raises(pytest.skip.Exception):
        without_browser({})
    with pytest.raises(pytest.fail.Exception, match="requires one; install one: apt-get install chromium"):
        without_browser({"REQUIRE_BROWSER": "1"})


def test_a_run_without_a_browser_ends_with_a_line_that_says_how_to_get_one(tmp_path: Path) -> None:
    ours = ("HEADWATER_", "PYTEST_", "REQUIRE_BROWSER")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environ |= {"PATH": str(tmp_path), "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path)}
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/acceptance/test_explorer.py"]
    skipped = subprocess.run(run, capture_output=True, text=True, check=False, cwd=ROOT, env=environ)
    assert skipped.returncode == 0, skipped.stdout
    line = "NOT TESTED: the explorer in a browser (2 skipped), because no Chromium was found; install one: apt-get"
    assert line in skipped.stdout
    required = environ | {"REQUIRE_BROWSER": "1"}
    failed = subprocess.run(run, capture_output=True, text=True, check=False, cwd=ROOT, env=required)
    assert failed.returncode == 1
    assert line not in failed.stdout
