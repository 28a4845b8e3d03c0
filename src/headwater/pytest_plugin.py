"""The pytest plugin: `headwater_app` is the app, running on a database of the test's own. See docs/testing.md.

pytest loads it by the entry point `pytest11`. Headwater itself is imported by the first test that uses a fixture.

    headwater_server: one embedded PostgreSQL for the run, in memory where there is room
      -> headwater_template: a migrated database with the tables of the app
      -> headwater_dsn: a clone of it, for each test
      -> headwater_app: the app that runs on it
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from headwater import App
    from headwater.postgres.embedded import EmbeddedPostgres
    from headwater.server.app_under_test import AppUnderTest

try:
    from pytest_asyncio import fixture as async_fixture
except ImportError:  # of a project that has Headwater, but no tests of it
    async_fixture = pytest.fixture  # type: ignore[assignment]  # pytest then says that it cannot run an async fixture

MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory
ENOUGH = 4 * 2**30
"""The bytes that must be free in MEMORY: more than twice what the servers of a large suite use."""

_names = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("headwater_app", "the App to test, MODULE:NAME; default: [tool.headwater] app in pyproject.toml")


@pytest.fixture(scope="session")
def headwater_under_test(pytestconfig: pytest.Config) -> App:
    """The App to test. Define a fixture of this name to choose another one."""
    from headwater.cli.application import load

    return load(pytestconfig.getini("headwater_app") or None)


@pytest.fixture(scope="session")
def headwater_server() -> Iterator[EmbeddedPostgres]:
    """The PostgreSQL of the run.

    Its data need not survive a crash of the machine, so it does not wait for the disk. A minimal WAL halves the time of
    cloning a database.
    """
    with temporary_server() as server:
        yield server


@contextmanager
def temporary_server(installed: Path | None = None) -> Iterator[EmbeddedPostgres]:
    """Run a server for tests. installed: the folder of the programs of another PostgreSQL, for tests of Headwater."""
    from headwater.postgres import embedded

    options = {"fsync": "off", "full_page_writes": "off", "wal_level": "minimal", "max_wal_senders": "0"}
    options |= {"max_connections": "200", "max_prepared_transactions": "10"}
    with embedded.temporary(options=options, within=memory(), installed=installed) as server:
        yield server


def memory() -> Path | None:
    """Return a file system in memory with enough room, or None.

    A database is hundreds of files; creating them on a disk takes most of a suite's time on some machines.
    """
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH:
        return MEMORY
    return None


@pytest.fixture(scope="session")
def headwater_template(headwater_server: EmbeddedPostgres, headwater_under_test: App) -> str:
    """The name of a migrated database with the read-model tables of the app, which tests clone."""
    from headwater.server.preparation import migrate_app

    async def make() -> None:
        await _execute(headwater_server.dsn(), "create database headwater_template")
        await migrate_app(headwater_under_test, headwater_server.dsn("headwater_template"))

    asyncio.run(make())
    return "headwater_template"


@pytest.fixture
def headwater_dsn(headwater_server: EmbeddedPostgres, headwater_template: str) -> Iterator[str]:
    """The URL of the test's own migrated database, with an empty log."""
    with cloned(headwater_server, headwater_template) as dsn:
        yield dsn


@contextmanager
def cloned(server: EmbeddedPostgres, template: str) -> Iterator[str]:
    """Yield the URL of a copy of a database, which is dropped at the end."""
    name = f"test_{next(_names)}"
    asyncio.run(_execute(server.dsn(), f"create database {name} template {template} strategy file_copy"))
    try:
        yield server.dsn(name)
    finally:
        asyncio.run(_execute(server.dsn(), f"drop database {name} with (force)"))


async def _execute(dsn: str, statement: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@async_fixture
async def headwater_app(headwater_under_test: App, headwater_dsn: str) -> AsyncIterator[AppUnderTest]:
    """The app, running on a database of the test's own: commands, rows, a GraphQL client, a clock, `settle()`."""
    from headwater.server.app_under_test import under_test

    async with under_test(headwater_under_test, headwater_dsn) as app:
        yield app
