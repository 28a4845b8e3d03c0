"""The doorbell: a NOTIFY that says "look", and one connection a process that hears it.

It carries a name and a position, never data. Losing one costs a poll: whoever waits also looks for himself.

`broadcaster` is the transport, so that Redis can take PostgreSQL's place when there are many nodes. Its own PostgreSQL
backend publishes on one connection without a lock, loses messages when several subscribe at first, and hangs after a
lost connection; `PostgresBell` takes its place. It never raises from `next_published`, since broadcaster's unsupervised
listener would die of it.

States of the listener: connecting -> listening (LISTEN, then read positions) -> hearing (heartbeat) -> connecting ...
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
"""What the listener rings, in this process only, when its connection is lost and when it has another."""
_LONGEST_POSITION = 19  # digits of a bigint


class PostgresBell(BroadcastBackend):
    """LISTEN on a connection of its own. What comes in faster than it is read is merged: the latest position a name."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rings: dict[str, str] = {}
        self._rung = asyncio.Event()

    async def connect(self) -> None:
        """Nothing yet: `listen` connects, and connects again."""

    async def disconnect(self) -> None:
        """Nothing: `listen` closes what it opened."""

    async def subscribe(self, channel: str) -> None:
        """Nothing: there is one channel, and `listen` hears it."""

    async def unsubscribe(self, channel: str) -> None:
        """Nothing: see `subscribe`."""

    async def publish(self, channel: str, message: Any) -> None:
        """Ring outside a transaction. Headwater's own writers ring within theirs."""
        await self._database.pool.execute("select pg_notify($1, $2)", channel, message)

    async def next_published(self) -> Ring:
        """The next name that rang, with its latest position."""
        while not self._rings:
            self._rung.clear()
            await self._rung.wait()
        name = next(iter(self._rings))
        return Ring(CHANNEL, self._rings.pop(name))

    async def listen(self, well: Callable[[], None] = lambda: None) -> None:
        """Hear rings until the connection is lost, then raise. Runs under a supervisor, which calls it again and is
        told when a loss is got over."""
        connection = await self._database.connect("listener")
        lost = asyncio.get_running_loop().create_future()

        def lose(*_: object) -> None:
            self._ring(_FORGET, _FORGET)
            if not lost.done():
                lost.set_result(None)

        connection.add_termination_listener(lose)
        try:
            await connection.add_listener(CHANNEL, self._hear)
            # Only after LISTEN has been answered: what was committed before it did not ring for us. It may be less than
            # what was heard before, of a server that has crashed since, or of another.
            positions = await connection.fetch(_SQL["positions"])
            self._ring(_FORGET, _FORGET)
            for name, position in positions:
                self._ring(name, f"{name}:{position}")
            self._ring(_EVERYONE, _EVERYONE)
            well()
            while True:
                await asyncio.wait([lost], timeout=HEARTBEAT_SECONDS)
                if lost.done():
                    raise ConnectionError("the listener's connection was lost")
                # A peer that died silently says nothing: ask.
                await connection.execute("select 1", timeout=HEARTBEAT_SECONDS)
        finally:
            connection.terminate()

    def _hear(self, connection: object, pid: int, channel: str, payload: object) -> None:
        self._ring(str(payload).partition(":")[0], str(payload))

    def _ring(self, name: str, message: str) -> None:
        self._rings.pop(name, None)
        self._rings[name] = message
        self._rung.set()


class Doorbell:
    """Reports what rings to the process's positions."""

    def __init__(self, backend: BroadcastBackend, positions: Positions) -> None:
        self._backend = backend
        self._positions = positions

    async def run(self) -> None:
        """Subscribe once for the whole process, and pass on what is heard. Runs under a supervisor."""
        async with Broadcast(backend=self._backend) as broadcast, broadcast.subscribe(CHANNEL) as rings:
            while True:
                ring = await rings.get()
                self.hear(ring.message)

    def hear(self, message: str) -> None:
        """One ring: `name:position`, an empty one for everyone, or that all is to be forgotten."""
        name, _, position = message.partition(":")
        if message == _FORGET:
            self._positions.forget()
        elif not name:
            self._positions.wake_everyone()
        elif position.isdecimal() and len(position) <= _LONGEST_POSITION:
            self._positions.report(name, int(position))
        else:
            logger.warning("a ring that is not ours on channel %s: %.80r", CHANNEL, message)
