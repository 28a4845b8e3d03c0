"""The database that a command is about: how it is reached, and what the command says when it cannot be.

An operator's command is one line of it: `ask(settings, question)`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import asyncpg

from headwater.cli.loop import complete
from headwater.config import Settings
from headwater.errors import SettingsError
from headwater.postgres import embedded
from headwater.postgres.database import UNREACHABLE, Database
from headwater.postgres.migrations import require_schema

T = TypeVar("T")


def dsn_of(settings: Settings) -> str:
    """The database that is set, and no other: for a process that serves it."""
    if settings.database_url is None:
        raise SettingsError("DATABASE_URL is not set; give it a postgresql:// address, or use `headwater dev`")
    return settings.database_url


def dsn_to_ask(settings: Settings) -> str:
    """The database that is set, or that of the `headwater dev` which runs in this folder: for who looks at it."""
    if settings.database_url is None and (running := embedded.running_dsn(settings.data)) is not None:
        return running
    return dsn_of(settings)


def ask(settings: Settings, question: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    """Ask the database something, and wait for the answer.

    Raises the errors that `main` answers with a sentence: no database, nobody there, not migrated.
    """
    return complete(connected(dsn_to_ask(settings), question))


async def connected(dsn: str, question: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    """Ask a migrated database something, on a connection of its own."""
    async with migrated_database(dsn, pool_size=1) as database:
        connection = await database.connect("command line")
        try:
            return await question(connection)
        finally:
            await connection.close()


@asynccontextmanager
async def migrated_database(dsn: str, *, pool_size: int) -> AsyncIterator[Database]:
    with reaching():
        async with Database(dsn, pool_size=pool_size) as database:
            await require_schema(database.pool)
            yield database


@contextmanager
def reaching() -> Iterator[None]:
    """Say which setting is at fault when nobody is there, or when the setting makes no sense."""
    try:
        yield
    except asyncpg.ClientConfigurationError as error:
        raise SettingsError(f"DATABASE_URL cannot be used ({error}); change the setting") from error
    except UNREACHABLE as error:
        raise SettingsError(
            f"DATABASE_URL: the database cannot be reached ({error}); start it, or change the setting"
        ) from error
