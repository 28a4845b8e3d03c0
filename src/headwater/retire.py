"""Retiring what no code brings any more: a read model, a saga or a reactor that was taken out of an app or renamed.

Nobody keeps it then, so that it falls behind the log for good. That nobody does now is no proof that nobody will: older
code may come back. So a person says it.
"""

from __future__ import annotations

import re

import asyncpg

from headwater import sql
from headwater.errors import HeadwaterError
from headwater.tables import SCHEMA, alone

_SQL = sql.load(__file__)

LOCK_SECONDS = 5.0


class NotRetired(HeadwaterError):
    """It is not there, or something stands in the way."""


async def retire(connection: asyncpg.Connection, name: str) -> None:
    """Have nobody keep it any more. A read model cannot be read from now on, and its rows are dropped by a worker after
    a time; where a saga or a reactor stands is forgotten.

    Raises:
        NotRetired: there is no such thing, or a view of the operator's, or a long query, needs its rows.
    """
    try:
        async with alone(connection, name, seconds=LOCK_SECONDS):
            tables = [row["table_name"] for row in await connection.fetch(_SQL["retire"], name)]
            # Every generation's table is the view's name and a number.
            for view in {re.sub(r"_\d+$", "", table) for table in tables}:
                await connection.execute(f'drop view if exists {SCHEMA}."{view}"')
            if not tables and not await connection.fetch(_SQL["forget"], name):
                names = ", ".join(row["name"] for row in await connection.fetch(_SQL["known"]))
                raise NotRetired(f"nothing is kept under the name {name!r}; there are {names or 'none'}")
            await connection.execute(_SQL["ring"])
    except asyncpg.DependentObjectsStillExistError as error:
        raise NotRetired(
            f"something of yours depends on the view of {name}: {error.detail}; drop that first"
        ) from error
    except asyncpg.LockNotAvailableError as error:
        raise NotRetired(f"a query or a worker holds {name}, or its rows; try again") from error
