"""Retiring what no code brings any more, a read model, a saga or a reactor that was taken out of an app or renamed, and
dropping the rows of what is retired.

Nobody keeps it then, so that it falls behind the log for good. That nobody does now is no proof that nobody will: older
code may come back. So a person says it.
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


class NotRetired(HeadwaterError):
    """It is not there, or something stands in the way."""


async def retire(connection: asyncpg.Connection, name: str) -> None:
    """Have nobody keep it any more. A read model cannot be read from now on, and its rows are dropped by a worker after
    a time; where a saga or a reactor stands is forgotten.

    Raises:
        NotRetired: there is no such thing, or a view of the operator's, or a long query, needs its rows. Or instances
            of the saga are open, which nobody would go on with.
    """
    try:
        async with table_lock(connection, name, seconds=LOCK_SECONDS):
            tables = [row["table_name"] for row in await connection.fetch(_SQL["retire"], name)]
            # Every generation's table is the view's name and a number.
            for view in {re.sub(r"_\d+$", "", table) for table in tables}:
                await connection.execute(f'drop view if exists {SCHEMA}."{view}"')
            if not tables and not await _forget(connection, name):
                names = ", ".join(row["name"] for row in await connection.fetch(_SQL["known"]))
                raise NotRetired(f"nothing is kept under the name {name!r}; there are {names or 'none'}")
            await connection.execute(_SQL["ring"])
    except asyncpg.DependentObjectsStillExistError as error:
        raise NotRetired(
            f"something of yours depends on the view of {name}: {error.detail}; drop that first"
        ) from error
    except asyncpg.LockNotAvailableError as error:
        raise NotRetired(f"a query or a worker holds {name}, or its rows; try again") from error


async def _forget(connection: asyncpg.Connection, name: str) -> bool:
    """Forget where a saga or a reactor stands. Whether there was anything."""
    forgotten = await connection.fetch(_SQL["forget"], name)
    if not name.startswith(SAGA_PREFIX):
        return bool(forgotten)
    # Now that the checkpoint is locked, no worker of it writes any more.
    saga = name.removeprefix(SAGA_PREFIX)
    given_up = await connection.fetch(_SQL["give_up"], saga)
    opened = await connection.fetchval(_SQL["open"], saga)
    if opened:
        instances = "1 instance of it is" if opened == 1 else f"{opened:,} instances of it are"
        raise NotRetired(
            f"{name} is not retired: {instances} not over, and nobody would go on with what is begun. Bring the saga "
            f"back and let them end, or give each up by `headwater sagas abandon ID --reason TEXT`; `headwater sagas "
            f"list --saga {saga}` shows them"
        )
    return bool(forgotten or given_up)


class Retired:
    """Drops the tables of generations that are retired for so many seconds."""

    def __init__(self, database: Database, *, seconds: float = 60.0) -> None:
        self._database = database
        self._seconds = seconds
        self._kept: set[str] = set()
        """Tables of which it was said that they are kept."""

    async def run(self, well: Callable[[], None] = lambda: None) -> None:
        """Look now and then, until cancelled. Runs under a supervisor."""
        while True:
            await self.drop()
            well()
            await asyncio.sleep(min(max(self._seconds / 4, 0.1), 15.0))

    async def drop(self) -> list[str]:
        """Drop what is due; the names of the tables. One that is still read, or that something of the operator's
        depends on, is left for the next time."""
        connection = await self._database.connect("retired tables")
        try:
            expired = await connection.fetch(_SQL["expired"], self._seconds)
            return [
                table for name, generation, table in expired if await self._drop(connection, name, generation, table)
            ]
        finally:
            connection.terminate()

    async def _drop(self, connection: asyncpg.Connection, name: str, generation: int, table: str) -> bool:
        """One table, in a transaction of its own: what keeps it keeps no other."""
        try:
            async with table_lock(connection, name, seconds=LOCK_SECONDS):
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
                    "the retired table %s.%s is kept while something needs it: %s", SCHEMA, table, error.detail
                )
                self._kept.add(table)
            return False
        return True
