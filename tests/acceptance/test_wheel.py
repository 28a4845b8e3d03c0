"""The wheel, in an environment of its own: it carries all that a new app needs."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def mine() -> str:
    """The app of the README."""
    found = re.search(r"```python\n(# mine\.py\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by pip from the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT))
    (built,) = folder.glob("*.whl")
    return built


def test_it_holds_the_migrations_and_the_explorer_and_no_bank(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "headwater/migrations/versions/0001_log.sql" in names
    assert "headwater/console/static/index.html" in names
    assert "headwater/py.typed" in names
    assert "headwater/log.sql" in names
    assert not [name for name in names if name.startswith(("bank/", "tests/", "benchmarks/"))]


async def test_an_app_of_ones_own(wheel: Path, tmp_path: Path, headwater: Callable[..., Any]) -> None:
    venv = tmp_path / "venv"
    await asyncio.to_thread(_install, venv, wheel)
    (tmp_path / "mine.py").write_text(mine())

    dev = await headwater("dev", "--app", "mine:app", cwd=tmp_path, python=str(venv / "bin" / "python"))

    done = await dev.graphql('mutation { note(input: { text: "hello" }) { ... on NoteAccepted { note { text } } } }')
    assert done == {"note": {"note": {"text": "hello"}}}
    page = await dev.get("/graphql", accept="text/html")
    assert page.status_code == 200
    assert "<title>Headwater</title>" in page.text


def _install(venv: Path, wheel: Path) -> None:
    _run(sys.executable, "-m", "venv", str(venv))
    # The versions that are pinned here, so that a release of somebody else's cannot break this test.
    pinned = venv / "constraints.txt"
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned.write_text("\n".join(line.rstrip(" \\") for line in lines if "==" in line))
    _run(str(venv / "bin" / "python"), "-m", "pip", "install", "-q", "-c", str(pinned), str(wheel))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
