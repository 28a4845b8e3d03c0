"""Reaches the database that a command is about, and names the setting at fault when that fails.

An operator's command is one call: `ask(settings, question)`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import asyncpg

from headwater.cli.loop import complete
from headwater.config import Settings
from headwater.errors import SettingsError
from headwater.eventstore.epoch import Epochs
from headwater.postgres import embedded
from headwater.postgres.database import Database
from headwater.postgres.reaching import reaching
from headwater.postgres.schema_version import require_schema

T = TypeVar("T")


def dsn_of(settings: Settings) -> str:
    """Return DATABASE_URL, for a process that serves the database.

    Raises:
        SettingsError: DATABASE_URL is not set.
    """
    if settings.database_url is None:
        raise SettingsError("DATABASE_URL is not set; give it a postgresql:// address, or use `headwater dev`")
    return settings.database_url


def session_variable(settings: Settings) -> str:
    """Return the name of the variable that gives `session_dsn_of`."""
    return "DATABASE_URL" if settings.listen_url is None else "HEADWATER_LISTEN_URL"


def session_dsn_of(settings: Settings) -> str:
    """Return HEADWATER_LISTEN_URL, else DATABASE_URL.

    Raises:
        SettingsError: neither is set.
    """
    return settings.listen_url or dsn_of(settings)


def dsn_to_ask(settings: Settings) -> str:
    """Return the same, else the address of the `headwater dev` that runs in this folder.

    For commands that only look at a database: `headwater dev` may stop its own at any time.
    """
    if settings.database_url is None and (running := embedded.running_dsn(settings.data)) is not None:
        return running
    return session_dsn_of(settings)


def ask(settings: Settings, question: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    """Call `question` with a connection of its own to the migrated database, and return its result.

    Raises the errors that `main` prints: no database is set, it cannot be reached, or it is not migrated.
    """
    return complete(connected(settings, question))


async def connected(settings: Settings, question: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    """Call `question` with a connection of its own to a migrated database, and return its result."""
    async with migrated_database(settings, pool_size=1) as database:
        connection = await database.connect("command line")
        try:
            return await question(connection)
        finally:
            await connection.close()


@asynccontextmanager
async def migrated_database(settings: Settings, *, pool_size: int) -> AsyncIterator[Database]:
    """Open the database that an operator's command is about. Its schema must be this version's."""
    dsn = dsn_to_ask(settings)
    with reaching(session_variable(settings)):
        async with Database(dsn, pool_size=pool_size, greet=Epochs().enter) as database:
            await require_schema(database.pool)
            yield database
