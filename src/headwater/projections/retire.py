"""Retires a read model, saga or reactor that the app no longer has, and drops the tables of what is retired.

A unit that was removed from the app, or renamed, has no worker and falls behind the log for good. It is not retired
automatically, because an older version of the code may come back. An operator decides.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable

import asyncpg

from headwater.domain.saga import SAGA_PREFIX
from headwater.errors import HeadwaterError
from headwater.postgres import queries
from headwater.postgres.database import Database
from headwater.projections import row_events
from headwater.projections.generations import table_lock
from headwater.projections.tables import SCHEMA

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)

LOCK_SECONDS = 5.0
"""The longest wait for each lock of retiring or dropping, in seconds. Queries that arrive meanwhile wait behind it."""


class NotRetired(HeadwaterError):
    """The name is unknown, or something still needs the unit or its rows."""


async def retire(connection: asyncpg.Connection, name: str) -> None:
    """Stop maintaining a read model, a projection with tables of the app's own, a saga or a reactor.

    A read model cannot be read from now on; a worker drops its tables later. The checkpoint of any other is
    deleted; tables of the app's own stay as they are.

    Raises:
        NotRetired: the name is unknown; or an SQL view of the operator or a running query needs the rows; or instances
            of the saga are open.
    """
    try:
        async with table_lock(connection, name, seconds=LOCK_SECONDS):
            tables = [row["table_name"] for row in await connection.fetch(_SQL["retire"], name)]
            # The table of a generation has the name of the SQL view and a number.
            for view in {re.sub(r"_\d+$", "", table) for table in tables}:
                await connection.execute(f'drop view if exists {SCHEMA}."{view}"')
            if not tables and not await _forget(connection, name):
                names = ", ".join(row["name"] for row in await connection.fetch(_SQL["known"]))
                raise NotRetired(
                    f"there is no read model, saga or reactor {name!r} to retire; there are {names or 'none'}"
                )
            await connection.execute(_SQL["ring"])
    except asyncpg.DependentObjectsStillExistError as error:
        raise NotRetired(
            f"another object depends on the SQL view of {name}: {error.detail}; drop that object first"
        ) from error
    except asyncpg.LockNotAvailableError as error:
        raise NotRetired(
            f"{name} is not retired: a query or a worker has a lock on it or its rows; try again"
        ) from error


async def _forget(connection: asyncpg.Connection, name: str) -> bool:
    """Delete the checkpoint of a saga or reactor. True if there was anything to delete."""
    forgotten = await connection.fetch(_SQL["forget"], name)
    if not name.startswith(SAGA_PREFIX):
        return bool(forgotten)
    # The deleted checkpoint is locked, so no worker of the saga writes from here on.
    saga = name.removeprefix(SAGA_PREFIX)
    given_up = await connection.fetch(_SQL["give_up"], saga)
    opened = await connection.fetchval(_SQL["open"], saga)
    if opened:
        instances = "1 instance of it is" if opened == 1 else f"{opened:,} instances of it are"
        raise NotRetired(
            f"{name} is not retired: {instances} not over, and would never end. Put the saga back into the app until "
            f"they have ended, or end each by `headwater sagas abandon ID --reason TEXT`; `headwater sagas list --saga "
            f"{saga}` shows them"
        )
    return bool(forgotten or given_up)


class RetiredTables:
    """Drops the tables of retired generations.

    seconds: how long they are kept. lock_seconds: how long dropping one waits for a lock.
    """

    def __init__(self, database: Database, *, seconds: float = 60.0, lock_seconds: float = LOCK_SECONDS) -> None:
        self._database = database
        self._seconds = seconds
        self._lock_seconds = lock_seconds
        self._kept: set[str] = set()
        """Tables that cannot be dropped, for which a warning was logged."""

    async def run(self, well: Callable[[], None] = lambda: None) -> None:
        """Drop expired tables at regular intervals until cancelled. Runs under a supervisor."""
        while True:
            await self.drop()
            well()
            await asyncio.sleep(min(max(self._seconds / 4, 0.1), 15.0))

    async def drop(self) -> list[str]:
        """Drop the tables that are due; return their names.

        A table that is being read, or on which an object of the operator depends, is left for the next call.
        """
        connection = await self._database.connect("retired tables")
        try:
            expired = await connection.fetch(_SQL["expired"], self._seconds)
            return [
                row["table_name"]
                for row in expired
                if await self._drop(connection, row["name"], row["generation"], row["table_name"])
            ]
        finally:
            connection.terminate()

    async def _drop(self, connection: asyncpg.Connection, name: str, generation: int, table: str) -> bool:
        """Drop one table in its own transaction, so that a failure does not affect other tables."""
        try:
            async with table_lock(connection, name, seconds=self._lock_seconds):
                if not await connection.fetch(_SQL["claim"], name, generation):
                    return False
                await connection.execute(f'drop table {SCHEMA}."{table}"')
                await row_events.drop(connection, table)
                await connection.execute(_SQL["clear"], name, generation)
        except asyncpg.LockNotAvailableError:
            return False
        except asyncpg.DependentObjectsStillExistError as error:
            if table not in self._kept:
                logger.warning(
                    "the retired table %s.%s cannot be dropped: %s; drop the object that depends on it first",
                    SCHEMA,
                    table,
                    error.detail,
                )
                self._kept.add(table)
            return False
        return True
