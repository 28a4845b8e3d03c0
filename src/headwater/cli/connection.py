"""Reaches the database that a command is about, and names the setting at fault when that fails.

An operator's command is one call: `ask(settings, question)`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import asyncpg

from headwater.cli.loop import complete
from headwater.config import Settings
from headwater.errors import SettingsError
from headwater.eventstore.epoch import Epochs
from headwater.postgres import embedded
from headwater.postgres.database import UNREACHABLE, Database
from headwater.postgres.migrations import require_schema

T = TypeVar("T")


def dsn_of(settings: Settings) -> str:
    """Return DATABASE_URL, for a process that serves the database.

    Raises:
        SettingsError: DATABASE_URL is not set.
    """
    if settings.database_url is None:
        raise SettingsError("DATABASE_URL is not set; give it a postgresql:// address, or use `headwater dev`")
    return settings.database_url


def dsn_to_ask(settings: Settings) -> str:
    """Return DATABASE_URL, else the address of the `headwater dev` that runs in this folder.

    For commands that only look at a database: `headwater dev` may stop its own at any time.
    """
    if settings.database_url is None and (running := embedded.running_dsn(settings.data)) is not None:
        return running
    return dsn_of(settings)


def ask(settings: Settings, question: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    """Call `question` with a connection of its own to the migrated database, and return its result.

    Raises the errors that `main` prints: no database is set, it cannot be reached, or it is not migrated.
    """
    return complete(connected(dsn_to_ask(settings), question))


async def connected(dsn: str, question: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    """Call `question` with a connection of its own to a migrated database, and return its result."""
    async with migrated_database(dsn, pool_size=1) as database:
        connection = await database.connect("command line")
        try:
            return await question(connection)
        finally:
            await connection.close()


@asynccontextmanager
async def migrated_database(dsn: str, *, pool_size: int) -> AsyncIterator[Database]:
    """Open a database whose schema is this version's."""
    with reaching():
        async with Database(dsn, pool_size=pool_size, greet=Epochs().enter) as database:
            await require_schema(database.pool)
            yield database


@contextmanager
def reaching() -> Iterator[None]:
    """Report a database that cannot be reached, and an address that makes no sense, as a fault of DATABASE_URL."""
    try:
        yield
    except asyncpg.ClientConfigurationError as error:
        raise SettingsError(f"DATABASE_URL cannot be used ({error}); change the setting") from error
    except UNREACHABLE as error:
        raise SettingsError(
            f"DATABASE_URL: the database cannot be reached ({error}); start it, or change the setting"
        ) from error
