"""mypy and pyright, both strict, accept the user's declarations that are right and refuse those that are wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ERRORS = HERE / "errors.py"
RIGHT = [HERE / "declarations.py", ROOT / "src" / "bank"]


def mypy(*paths: Path) -> set[tuple[str, int]]:
    """The file and line of each error."""
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", *map(str, paths)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    found = re.findall(r"^(.+?):(\d+): error: ", ran.stdout, re.MULTILINE)
    return {(Path(file).name, int(line)) for file, line in found}


def pyright(*paths: Path) -> set[tuple[str, int]]:
    """The file and line of each error."""
    ran = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, *map(str, paths)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    found = json.loads(ran.stdout)["generalDiagnostics"]
    return {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1) for each in found if each["severity"] == "error"
    }


def is_marked(line: str, checker: str) -> bool:
    return "  # error: " in line or f"  # error of {checker}: " in line


@pytest.mark.parametrize("check", [mypy, pyright])
def test_right_declarations_and_the_bank_type_check(check: Callable[..., set[tuple[str, int]]]) -> None:
    assert check(*RIGHT) == set()


@pytest.mark.parametrize("check", [mypy, pyright])
def test_each_wrong_declaration_is_a_type_error(check: Callable[..., set[tuple[str, int]]]) -> None:
    lines = ERRORS.read_text().splitlines()
    marked = {(ERRORS.name, number) for number, line in enumerate(lines, 1) if is_marked(line, check.__name__)}
    assert len(marked) > 15
    assert check(ERRORS) == marked
