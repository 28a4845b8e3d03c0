"""The doorbell: a NOTIFY that announces a new position, and one connection a process that listens for it.

It carries a name and a position, never data. A lost notification costs one poll, because each waiting task also polls.

`broadcaster` is the transport, so that Redis can replace PostgreSQL when there are many nodes. Its own PostgreSQL
backend publishes on one connection without a lock, loses messages when several subscribers start at the same time, and
hangs after a lost connection. `PostgresBell` replaces that backend. It never raises from `next_published`, because
broadcaster's listener task has no supervisor and would end.

States of the listener: connecting -> subscribing (LISTEN, then read positions) -> hearing (heartbeat) -> connecting ...
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from broadcaster import Broadcast, BroadcastBackend
from broadcaster import Event as Ring

from headwater.eventstore.positions import Positions
from headwater.postgres import queries
from headwater.postgres.database import Database

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)

CHANNEL = "headwater"
HEARTBEAT_SECONDS = 5.0
_EVERYONE = ""
_FORGET = "!"
"""The message that the listener rings, in this process only, when its connection is lost and when it has a new one."""
EPOCH = "epoch"
"""The name that rings when a new epoch of the log has begun."""
_LONGEST_POSITION = 19  # digits of a bigint


class PostgresBell(BroadcastBackend):
    """LISTEN on a connection of its own. Notifications that arrive faster than they are read are merged by name: the
    latest position counts."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rings: dict[str, str] = {}
        self._rung = asyncio.Event()

    async def connect(self) -> None:
        """Do nothing: `listen` connects, and reconnects."""

    async def disconnect(self) -> None:
        """Do nothing: `listen` closes its connection."""

    async def subscribe(self, channel: str) -> None:
        """Do nothing: `listen` is subscribed to the only channel."""

    async def unsubscribe(self, channel: str) -> None:
        """Do nothing, as `subscribe`."""

    async def publish(self, channel: str, message: Any) -> None:
        """Ring outside a transaction. Headwater's own writers notify in the transaction of their writes."""
        await self._database.pool.execute("select pg_notify($1, $2)", channel, message)

    async def next_published(self) -> Ring:
        """Return the next name that rang, with its latest position."""
        while not self._rings:
            self._rung.clear()
            await self._rung.wait()
        name = next(iter(self._rings))
        return Ring(CHANNEL, self._rings.pop(name))

    async def listen(self, well: Callable[[], None] = lambda: None) -> None:
        """Listen until the connection is lost, then raise. Runs under a supervisor, which calls it again.

        well: called when the listener has subscribed, so that a loss before is over.
        """
        connection = await self._database.connect("listener", session=True)
        lost = asyncio.get_running_loop().create_future()

        def lose(*_: object) -> None:
            self._ring(_FORGET, _FORGET)
            if not lost.done():
                lost.set_result(None)

        connection.add_termination_listener(lose)
        try:

            def take(*notification: object) -> None:
                payload = str(notification[-1])
                if payload.partition(":")[0] == EPOCH:
                    lose()  # the next connection learns of it
                else:
                    self.hear(payload)

            await connection.add_listener(CHANNEL, take)
            # Read the positions only after LISTEN: commits before it did not ring on this connection. They may be lower
            # than those heard before, if the server has crashed or is another one.
            positions = await connection.fetch(_SQL["positions"])
            self._ring(_FORGET, _FORGET)
            for row in positions:
                self._ring(row["name"], f"{row['name']}:{row['position']}")
            self._ring(_EVERYONE, _EVERYONE)
            well()
            while True:
                await asyncio.wait([lost], timeout=HEARTBEAT_SECONDS)
                if lost.done():
                    raise ConnectionError("the listener's connection was lost")
                # A server that died silently closes no connection, so query it.
                await connection.execute("select 1", timeout=HEARTBEAT_SECONDS)
        finally:
            connection.terminate()

    def hear(self, payload: str) -> None:
        """Take a notification: `name:position`."""
        self._ring(payload.partition(":")[0], payload)

    def _ring(self, name: str, message: str) -> None:
        self._rings.pop(name, None)
        self._rings[name] = message
        self._rung.set()


class Doorbell:
    """Reports each ring to the process's positions."""

    def __init__(self, backend: BroadcastBackend, positions: Positions) -> None:
        self._backend = backend
        self._positions = positions

    async def run(self) -> None:
        """Subscribe once for the whole process, and report each ring. Runs under a supervisor."""
        async with Broadcast(backend=self._backend) as broadcast, broadcast.subscribe(CHANNEL) as rings:
            while True:
                ring = await rings.get()
                self.hear(ring.message)

    def hear(self, message: str) -> None:
        """Take one ring: `name:position`; an empty one, which wakes all tasks; or the one to forget all positions."""
        name, _, position = message.partition(":")
        if message == _FORGET:
            self._positions.forget()
        elif not name:
            self._positions.wake_everyone()
        elif position.isdecimal() and len(position) <= _LONGEST_POSITION:
            self._positions.report(name, int(position))
        else:
            logger.warning("ignored an unknown notification on channel %s: %.80r", CHANNEL, message)
