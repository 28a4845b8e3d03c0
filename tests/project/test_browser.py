"""Tests that need a browser are skipped with a visible line where there is none, and fail where one is required."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.browser import NAMES, browser_path, without_browser

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
EXPLORER = ROOT / "tests" / "acceptance" / "test_explorer.py"


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


def test_a_run_without_a_browser_ends_with_a_line_that_says_how_to_get_one(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    monkeypatch.delenv("REQUIRE_BROWSER", raising=False)
    run = ["-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", f"-c{ROOT / 'pyproject.toml'}", str(EXPLORER)]
    skipped = pytester.runpytest_inprocess(*run)
    assert skipped.ret == 0
    skipped.assert_outcomes(skipped=2)
    line = "NOT TESTED: the explorer in a browser (2 skipped), because no Chromium was found; install one: apt-get"
    assert line in skipped.stdout.str()
    monkeypatch.setenv("REQUIRE_BROWSER", "1")
    failed = pytester.runpytest_inprocess(*run)
    assert failed.ret == 1
    failed.assert_outcomes(errors=2)
    assert line not in failed.stdout.str()
