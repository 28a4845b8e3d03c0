"""The wheel, installed into a new environment, holds all that an app needs; so does the source distribution."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from graphql import build_schema
from tests.support.commands import clean_environ

ROOT = Path(__file__).parents[2]


def mine() -> str:
    """Return the source of the smallest app in the documentation."""
    found = re.search(r"```python\n(# mine\.py\n.*?)```", (ROOT / "docs" / "index.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the wheel with pip from the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A folder with the smallest app of the documentation and an environment that has the wheel installed."""
    folder = tmp_path_factory.mktemp("installed")
    _install(folder / "venv", wheel)
    (folder / "mine.py").write_text(mine())
    return Installed(folder)


@dataclass(frozen=True)
class Installed:
    """A folder with an app, `mine.py`, and an environment, `venv`."""

    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "venv" / "bin" / "python")

    async def headwater(self, *arguments: str, **environ: str) -> str:
        """Run the installed `headwater` command. Returns its standard output."""
        command = self.folder / "venv" / "bin" / "headwater"
        return await asyncio.to_thread(_run, str(command), *arguments, cwd=self.folder, **environ)


def test_the_wheel_holds_the_migrations_and_the_explorer_and_no_bank(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    migrations = {path.relative_to(ROOT) for path in (ROOT / "migrations").rglob("*.*") if path.suffix != ".pyc"}
    assert names >= {f"headwater/{path}" for path in migrations}
    assert "headwater/graphql/explorer/static/index.html" in names
    assert "headwater/py.typed" in names
    assert "headwater/eventstore/log.sql" in names
    assert not [name for name in names if name.startswith(("bank/", "tests/", "benchmarks/"))]


def test_the_wheel_and_the_source_distribution_state_their_license(wheel: Path, tmp_path: Path) -> None:
    _run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path), cwd=ROOT)
    (packed,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(packed, tmp_path / "sdist", filter="data")
    shutil.unpack_archive(wheel, tmp_path / "wheel", "zip")
    (sdist,), (info,) = (tmp_path / "sdist").iterdir(), (tmp_path / "wheel").glob("*.dist-info")
    text = (ROOT / "LICENSE").read_text()
    assert [line.strip() for line in text.splitlines()[1:3]] == ["Apache License", "Version 2.0, January 2004"]
    for metadata, license_file in (
        (sdist / "PKG-INFO", sdist / "LICENSE"),
        (info / "METADATA", info / "licenses/LICENSE"),
    ):
        fields = message_from_string(metadata.read_text())
        assert (fields["License-Expression"], fields.get_all("License-File")) == ("Apache-2.0", ["LICENSE"])
        assert license_file.read_text() == text
    for where in (sdist / "src", tmp_path / "wheel"):
        third_party = (where / "headwater/graphql/explorer/static/licenses.md").read_text()
        assert all(f"## {each} - " in third_party for each in ("graphiql", "monaco-editor", "react"))
        assert "Permission is hereby granted" in third_party


async def test_an_app_outside_the_repository_runs_on_the_installed_wheel(
    installed: Installed, headwater: Callable[..., Any]
) -> None:
    dev = await headwater("dev", "--app", "mine:app", cwd=installed.folder, python=installed.python, PYTHONPATH="")

    done = await dev.graphql('mutation { note(input: { text: "hello" }) { ... on NoteAccepted { note { text } } } }')
    assert done == {"note": {"note": {"text": "hello"}}}
    assert await dev.graphql("{ notes { nodes { text } } }") == {"notes": {"nodes": [{"text": "hello"}]}}
    page = await dev.get("/graphql", accept="text/html")
    assert page.status_code == 200
    assert "<title>Headwater</title>" in page.text


async def test_the_installed_commands_work_with_an_app_outside_the_repository(
    installed: Installed, blank_dsn: str
) -> None:
    schema = build_schema(await installed.headwater("schema", "--app", "mine:app"))
    assert {"Note", "NoteFilter", "NoteInput", "NoteResult"} <= schema.type_map.keys()

    printed = await installed.headwater("migrate", "--app", "mine:app", DATABASE_URL=blank_dsn)

    assert printed == "The database is up to date.\n"
    assert await installed.headwater("check", "--app", "mine:app", DATABASE_URL=blank_dsn)
    connection = await asyncpg.connect(blank_dsn)
    last = max(path.name[:4] for path in (ROOT / "migrations" / "versions").glob("*.sql"))
    assert await connection.fetchval("select version_num from headwater.schema_version") == last
    assert await connection.fetchval("select array_agg(name) from headwater.projections") == ["Note"]
    await connection.close()


def _install(venv: Path, wheel: Path) -> None:
    _run(sys.executable, "-m", "venv", "--without-pip", str(venv))
    # The versions pinned in this repository, so that a new release of a dependency cannot break this test.
    pinned = venv / "constraints.txt"
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned.write_text("\n".join(line.rstrip(" \\") for line in lines if "==" in line))
    # Not compiled: most of what the dependencies contain is never imported.
    pip = (sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python"))
    _run(*pip, "install", "-q", "--no-compile", "-c", str(pinned), str(wheel))


def _run(*command: str, cwd: Path | None = None, **environ: str) -> str:
    """Run a command and return its output; fail the test on an error.

    Its environment does not lead Python to the repository's sources.
    """
    environ = clean_environ() | {"PYTHONPATH": ""} | environ
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
