"""Tombstones: what is kept of removed rows, for a time, so that a client that was away learns of them.

Once one is pruned, a cursor from before it is answered with a snapshot; `projections.forgotten` says up to where.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from headwater.postgres import queries
from headwater.postgres.database import Database

_SQL = queries.load(__file__)

LONGEST_PAUSE = 600.0
AT_ONCE = 10_000


class Tombstones:
    """Prunes the tombstones of live read models that are older than so many seconds. Any number of processes may do so;
    those of replaced generations go with their tables (`retire.Retired`)."""

    def __init__(self, database: Database, *, seconds: float) -> None:
        self._database = database
        self._seconds = seconds

    async def run(self, well: Callable[[], None] = lambda: None) -> None:
        """Look now and then, until cancelled. Runs under a supervisor."""
        while True:
            await self.prune()
            well()
            await asyncio.sleep(min(max(self._seconds / 4, 0.1), LONGEST_PAUSE))

    async def prune(self) -> int:
        """Prune what is due; returns how many. Each transaction prunes a bounded number, since it holds up the read
        model's worker."""
        connection = await self._database.connect("tombstones")
        pruned = 0
        try:
            for name, generation in await connection.fetch(_SQL["old"], self._seconds):
                while some := await connection.fetchval(_SQL["prune"], name, generation, self._seconds, AT_ONCE):
                    pruned += some
            return pruned
        finally:
            connection.terminate()
