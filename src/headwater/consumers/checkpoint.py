"""A consumer's checkpoint: the position up to which it has committed, moved only under its lease.

A projection, a saga or a reactor reads its checkpoint when it starts, and moves it in the transaction that commits a
batch. The move is a compare-and-swap on the position and on the fencing token of the lease: a batch is committed once
or not at all, and a worker whose lease has expired commits nothing.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from headwater.consumers.dead_letters import storable
from headwater.postgres import queries
from headwater.postgres.database import FAILING, PASSING, Connection
from headwater.postgres.tally import said

_SQL = queries.load(__file__)

WHY_BYTES = 2048
"""The longest reason that is recorded: the message of an exception can have any length."""


class CheckpointMoved(Exception):
    """Another process moved the checkpoint or holds the lease: the transaction must not commit."""


@dataclass(frozen=True)
class Generation:
    """One generation of a unit, as its row in `headwater.projections` has it.

    number: 1 for a saga or a reactor. table: the physical table; empty for a unit without one. position: its
    checkpoint. fence: the fencing token of its last lease. fingerprint: the declaration that it belongs to.
    """

    number: int
    table: str
    position: int
    fence: int
    fingerprint: str


class Checkpoint:
    """The checkpoint of one leased generation, on the connection that commits its batches.

    state: the state in which the generation must be. A generation that is being built rings no doorbell: nothing waits
    for its position.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        generation: Generation,
        *,
        state: Literal["live", "building"] = "live",
    ) -> None:
        self._connection = connection
        self._lease = name, generation.number, generation.fence, state

    async def read(self) -> int | None:
        """Return the position; None if the lease is no longer held."""
        position: int | None = await self._connection.fetchval(_SQL["read"], *self._lease)
        return position

    async def rewind_to(self) -> int | None:
        """Return the position that the unit must be taken back to: the log went back to before its checkpoint."""
        position: int | None = await self._connection.fetchval(_SQL["rewind_to"], *self._lease)
        return position

    async def go_back(self, position: int, reached: int) -> None:
        """Move back to the end of a shorter log, within the transaction of the caller.

        Raises:
            CheckpointMoved: it is not at `position`, or the lease is no longer held.
        """
        await self._swap("go_back", position, reached)

    async def move(self, position: int, reached: int) -> None:
        """Move from `position` to `reached`, within the transaction of the caller.

        Raises:
            CheckpointMoved: it is not at `position`, or the lease is no longer held.
        """
        await self._swap("move", position, reached)

    async def skip(self, position: int, reached: int) -> None:
        """Move past events that change nothing, in a transaction of its own that does not wait for the disk.

        Raises:
            CheckpointMoved: it is not at `position`, or the lease is no longer held.
        """
        await self._swap("skip", position, reached)

    async def halt(self, error: Exception) -> None:
        """Record why the unit halts before an event, for `headwater status`. Its next move clears it.

        Faults of the database, which pass, are not recorded. A lost lease is noticed elsewhere.
        """
        if not isinstance(error, (*PASSING, CheckpointMoved)):
            with suppress(*FAILING):
                await self._connection.execute(_SQL["halt"], *self._lease, storable(said(error), WHY_BYTES))

    async def hold(self) -> None:
        """Lock the lease until the transaction ends, so that no other worker can take it before.

        Raises:
            CheckpointMoved: the lease is no longer held.
        """
        if not await self._connection.fetch(_SQL["hold"], *self._lease):
            raise CheckpointMoved

    async def _swap(self, query: str, position: int, reached: int) -> None:
        if not await self._connection.fetch(_SQL[query], *self._lease, position, reached):
            raise CheckpointMoved


async def register(
    connection: Connection, name: str, fingerprint: str, *, from_end: bool = False, insist: bool = False
) -> None:
    """Create a unit without a table, or hand an existing one to this fingerprint. from_end: a new unit skips what the
    log holds now.

    A unit with another fingerprint belongs to another version of the code, which would skip the events that it does not
    know. As in `adopt` of a projection, the unit is handed over with its fencing token raised. If the unit had this
    fingerprint at an earlier time, this code is the older version, and takes the unit back only with `insist`.
    """
    made = await connection.execute(_SQL["register"], name, fingerprint, from_end)
    adopted = await connection.execute(_SQL["adopt"], name, fingerprint, insist)
    if (made, adopted) != ("INSERT 0 0", "UPDATE 0"):
        await connection.execute(_SQL["ring"])
