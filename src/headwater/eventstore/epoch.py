"""The epoch of the log. A position is a number of one epoch.

PostgreSQL can lose the end of the log: a replica is promoted that had not received the last transactions, or a backup
is restored. Then a new epoch begins. Positions up to its start mean the same as before; what a process or a client
knows of later positions of an earlier epoch is void.

    each new connection -> `Epochs.enter`: the epoch is the known one -> the connection is used
                                        -> it is new: `current` changes, and every listener drops its memory
                                        -> it has ended for this process: the server is refused

The database begins the epoch (`headwater.enter_epoch` in migrations/versions/0001_schema.sql), and the append refuses
commands that were decided in an earlier one.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeAlias
from uuid import UUID

import asyncpg

from headwater.domain.messages import Event, Recorded
from headwater.errors import HeadwaterError, LogWentBack
from headwater.eventstore.log import Append, Appended, Verdict
from headwater.postgres import queries
from headwater.postgres.database import Connection

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)

REMEMBERED = 200
"""The batches of commands or events that a process remembers, to name what the log loses."""

MOST_LOST = 10_000
"""The lost positions that a process holds until they are written."""

WITNESSES = 100
"""The events of a batch that a consumer remembers, the last ones: to keep more in memory slows it down."""

_TOKEN = re.compile(r"(?:([0-9a-f]{8})-([a-r]))?(0|[1-9]\d{0,17})", re.ASCII)


class EpochEnded(asyncpg.PostgresError):
    """An append of an epoch that has ended. Nothing was written."""

    sqlstate = "HW001"


class EarlierServer(ConnectionError):
    """The server is of an epoch that has ended, such as a former primary that was started again."""


class MemoryOutdated(HeadwaterError):
    """The work rests on an earlier epoch of the log: its owner must start again from the log as it is now."""


class Place(NamedTuple):
    """A position as a client names it. tag: of its epoch; None if the client gave the number only."""

    tag: str | None
    position: int

    def spell(self) -> str:
        """Return the text of the position. Within an epoch, the texts sort as the positions do.

        The start of the log is the same in every epoch, and is "0".
        """
        if not self.tag or not self.position:
            return str(self.position)
        return f"{self.tag}-{_length(str(self.position))}{self.position}"


def parse_place(text: str) -> Place | None:
    """Return the place that a text names; None if it names none."""
    match = _TOKEN.fullmatch(text)
    if match is None or match[2] not in (None, _length(match[3])):
        return None
    return Place(match[1], int(match[3]))


def _length(digits: str) -> str:
    """Return the letter that stands for so many digits, so that a longer number sorts after a shorter one."""
    return chr(96 + len(digits))


@dataclass(frozen=True, slots=True)
class Epoch:
    """An epoch.

    number: 1 for the first. tag: random, so that copies of a database differ. start: up to there, positions are those
    of the epoch before: the end of the log when it began, or less if others had gone on by then.
    """

    number: int
    tag: str
    start: int

    def place(self, position: int) -> Place:
        """Return a position of this epoch."""
        return Place(self.tag, position)


UNKNOWN = Epoch(0, "", 0)
"""Before the first connection."""


class Known(NamedTuple):
    """An event or command that this process knows to be in the log."""

    position: int
    stream_id: UUID | None
    version: int | None
    command_id: UUID | None
    type: str | None


class Commands(NamedTuple):
    """A batch of commands, with the verdicts on them."""

    appends: Sequence[Append]
    answers: Sequence[Appended]


Batch: TypeAlias = Commands | Sequence[Known] | Sequence[Recorded[Event]]
"""Evidence of what the log held: commands that were accepted, or events that were read. Kept as it
is, since there are many and few are ever looked at."""


def _known_of(batch: Batch) -> list[Known]:
    """Return what a batch shows to be in the log, in the order of positions: not a command that left no event."""
    if isinstance(batch, Commands):
        return [
            Known(appended.position, each.stream_id, appended.version, each.command_id, each.name)
            for each, appended in zip(batch.appends, batch.answers, strict=True)
            if appended.verdict is Verdict.ACCEPTED and each.events
        ]
    return [each if isinstance(each, Known) else _of_event(each) for each in batch]


def _of_event(event: Recorded[Event]) -> Known:
    name = event.data.__declared__.name
    return Known(event.position, event.stream_id, event.version, event.command_id, name)


class Epochs:
    """The epochs of the database, as this process knows them."""

    def __init__(self) -> None:
        self.current = UNKNOWN
        self._all: Sequence[Epoch] = ()
        self._listeners: list[Callable[[Epoch], None]] = []
        self._batches: deque[Batch] = deque(maxlen=REMEMBERED)
        self._lost: dict[tuple[str, int], Known | None] = {}
        self._found_lost = asyncio.Event()

    def on_change(self, listener: Callable[[Epoch], None]) -> None:
        """Call a function with the new epoch whenever one begins. It must not fail."""
        self._listeners.append(listener)

    def remember(self, batch: Batch, epoch: Epoch) -> None:
        """Remember what the log held in an epoch, in the order of positions."""
        if epoch is self.current and batch:
            self._batches.append(batch)

    def _known(self) -> Iterator[Known]:
        """Yield what is remembered, the latest first."""
        for batch in reversed(self._batches):
            yield from reversed(_known_of(batch))

    async def enter(self, connection: Connection) -> None:
        """Check the epoch of a new connection.

        Raises:
            EarlierServer: its epoch has ended.
        """
        try:
            latest = list(islice(self._known(), 1))
            rows = await self._enter(connection, latest) or await self._enter(connection, [*self._known()], whole=True)
        except (asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError):
            return  # not migrated: `require_schema` reports it
        except asyncpg.InsufficientPrivilegeError:  # of a role that only reads
            rows = await connection.fetch(_SQL["epochs"])
        self._take(rows)

    async def _enter(self, connection: Connection, known: list[Known], *, whole: bool = False) -> list[asyncpg.Record]:
        places, commands = [each.position for each in known], [each.command_id for each in known]
        return await connection.fetch(_SQL["enter"], self.current.tag, places, commands, whole)

    async def refresh(self, connection: Connection | asyncpg.Pool) -> None:
        """Read the epochs again: a client knows one that this process does not."""
        self._take(await connection.fetch(_SQL["epochs"]))

    def _take(self, rows: Sequence[asyncpg.Record]) -> None:
        epochs = [Epoch(row["epoch"], row["tag"], row["position"]) for row in rows]
        known, found = self.current, epochs[-1]
        if found.tag == known.tag:
            return
        if any(each.tag == found.tag for each in self._all):
            raise EarlierServer(
                f"the server is in epoch {found.number} of the log ({found.tag}), which was followed by {known.number}"
            )
        self._all, self.current = epochs, found
        if known is UNKNOWN:
            return
        limit = self.limit(known.tag)
        lost = {(known.tag, each.position): each for each in self._known() if each.position > limit}
        self._batches.clear()
        self._lost |= lost
        self._found_lost.set()
        logger.error(
            "the log went back: epoch %d begins after position %d; %d positions that this process knew are lost"
            " (`headwater lost` lists them)",
            *(found.number, limit, len(lost)),
        )
        for listener in self._listeners:
            listener(found)

    def limit(self, tag: str) -> int:
        """Return the last position of an epoch that is still valid in the current one; -1 for an epoch of another
        database."""
        for place, each in enumerate(self._all):
            if each.tag == tag:
                return min((later.start for later in self._all[place + 1 :]), default=2**63 - 1)
        return -1

    def valid(self, place: Place) -> bool:
        """True if a client's position still means the same."""
        return place.tag is None or place.position <= self.limit(place.tag)

    def require(self, place: Place) -> None:
        """Raise LogWentBack if a position does not mean the same any more."""
        if not self.valid(place):
            assert place.tag is not None  # a number alone is of the current epoch
            self._note_lost(place)
            raise LogWentBack(self.current.place(max(0, self.limit(place.tag))).spell())

    async def resolve(self, place: Place, pool: asyncpg.Pool) -> int:
        """Return the position that a place names.

        Raises:
            LogWentBack: the position is lost, or of another database.
        """
        if not self.valid(place):
            await self.refresh(pool)
            self.require(place)
        return place.position

    def _note_lost(self, place: Place) -> None:
        known_tag = any(each.tag == place.tag for each in self._all)  # a client may send any other
        if known_tag and place.tag is not None and len(self._lost) < MOST_LOST:
            self._lost.setdefault((place.tag, place.position))
            self._found_lost.set()

    async def report_lost(self, pool: asyncpg.Pool, process: str, well: Callable[[], None] = lambda: None) -> None:
        """Store in `headwater.lost` what this process and its clients knew of lost positions, whenever some are lost.
        Runs under a supervisor.

        process: its name.
        """
        while True:
            await self._found_lost.wait()
            self._found_lost.clear()
            await self._keep_lost(pool, process)
            well()

    async def _keep_lost(self, pool: asyncpg.Pool, process: str) -> None:
        lost, self._lost = self._lost, {}
        if not lost:
            return
        nothing = Known(0, None, None, None, None)
        columns = zip(*((*place, *(known or nothing)[1:]) for place, known in lost.items()), strict=True)
        try:
            await pool.execute(_SQL["keep_lost"], *map(list, columns), process)
        except BaseException:
            self._lost = lost | self._lost
            self._found_lost.set()
            raise
