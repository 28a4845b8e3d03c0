"""Tombstones: the keys of removed rows, kept for a time so that a client that was away learns of the removal.

A cursor from before a pruned tombstone is answered with all rows. `projections.forgotten` is the position of the last
pruned one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from headwater.postgres import queries
from headwater.postgres.database import Database

_SQL = queries.load(__file__)

LONGEST_PAUSE = 600.0
PRUNED_AT_ONCE = 10_000


class Tombstones:
    """Prunes the tombstones of live generations that are older than `seconds`.

    Any number of processes may do so at the same time. The tombstones of replaced generations are deleted with their
    tables, by `retire.RetiredTables`.
    """

    def __init__(self, database: Database, *, seconds: float) -> None:
        self._database = database
        self._seconds = seconds

    async def run(self, well: Callable[[], None] = lambda: None) -> None:
        """Prune at regular intervals until cancelled. Runs under a supervisor."""
        while True:
            await self.prune()
            well()
            await asyncio.sleep(min(max(self._seconds / 4, 0.1), LONGEST_PAUSE))

    async def prune(self) -> int:
        """Prune the tombstones that are due; return their number.

        Each transaction prunes a bounded number, because the worker of the read model waits for it.
        """
        connection = await self._database.connect("tombstones")
        pruned = 0
        try:
            for row in await connection.fetch(_SQL["old"], self._seconds):
                generation = row["name"], row["generation"]
                while some := await connection.fetchval(_SQL["prune"], *generation, self._seconds, PRUNED_AT_ONCE):
                    pruned += some
            return pruned
        finally:
            connection.terminate()
