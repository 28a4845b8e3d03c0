"""A process that rebuilds the bank's accounts: `builder.py DSN`, started by test_rebuild.

It writes every hundred events and pauses after each write, so that a test can kill it in the middle.
"""

from __future__ import annotations

import asyncio
import sys

from bank.accounts.views import account_view
from bank.main import app
from headwater.eventstore.log import Log
from headwater.postgres.database import Database
from headwater.projections.generations import rebuild as force
from headwater.projections.rebuild import BuildSettings, Rebuild

SETTINGS = BuildSettings(events=100, near=0, pause=0.1)
"""With the default `near`, it would not rest in a log as short as a test's."""


async def build(dsn: str) -> None:
    async with Database(dsn, pool_size=2) as database:
        async with database.pool.acquire() as connection:
            standing = await force(connection, account_view)
        log = Log(database.pool, app.domain.codec)
        await Rebuild(database, log, account_view, settings=SETTINGS).build(standing)


if __name__ == "__main__":
    asyncio.run(build(sys.argv[1]))
