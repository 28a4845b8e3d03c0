"""Sagas for a person: how each instance stands, what it waits for and why, and what to do about it.

`headwater.sagas` has an instance as its stream tells it, once the saga's worker has passed the record. An instance is
also parked when its dead letter waits for a person: then the code failed on it, not the business.

What a person decides is a record in the instance's stream, appended at the version that was seen: whoever conducts the
saga reads it there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias
from uuid import UUID

import asyncpg

from headwater.consumers import dead_letters
from headwater.domain.feature import Domain
from headwater.domain.saga import SAGA_PREFIX
from headwater.domain.saga_records import SagaAbandoned, SagaRecord, SagaRetried
from headwater.domain.saga_state import Phase
from headwater.domain.serialization import stored_form
from headwater.errors import HeadwaterError
from headwater.eventstore.log import Append, Verdict, append
from headwater.ids import new_id
from headwater.postgres import queries
from headwater.supervisor import backoff

_TEXTS = queries.load(__file__)
_SQL = {name: text.replace("{seen}", _TEXTS["seen"]) for name, text in _TEXTS.items()}
_OPEN_ONLY = "s.status in ('running', 'undoing', 'parked')"
_AFTER = "(s.since, s.stream_id) < ($10, $11)"
_LIST = {
    (is_open, follows): _SQL["list"].format(
        scope=_OPEN_ONLY if is_open else "true", after=_AFTER if follows else "true"
    )
    for is_open in (False, True)
    for follows in (False, True)
}

OPEN = (Phase.RUNNING, Phase.UNDOING, Phase.PARKED)
"""What an instance is that is not over."""

ATTEMPTS = 6
"""How often something is said to an instance that changes meanwhile."""

PAGE = 500

Limits: TypeAlias = Mapping[str, timedelta]
"""After how long the instances of which saga are stuck: the app knows, the database does not."""

Place: TypeAlias = tuple[datetime, UUID]
"""Of an instance in a list: `since` and `stream_id`."""


class SagaUnknown(HeadwaterError):
    """No instance of a saga has this id, or this key."""


class SagaAmbiguous(HeadwaterError):
    """The key belongs to instances of several sagas: name one by its id."""


class SagaOver(HeadwaterError):
    """The instance is over: nothing follows any more, and there is nothing to give up."""


class SagaNotParked(HeadwaterError):
    """Nothing of the instance waits for a person."""


class SagaChanging(HeadwaterError):
    """The instance was never as it was last seen: nothing was said to it."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance of a saga. state, steps: JSON text, see `docs/api.md`. since: when the last thing happened to it.
    reason: why it gives up, is parked, or is to be tried again. position, version: of its last record; of one that has
    not begun, since its first event is set aside, that event's, and 0."""

    stream_id: UUID
    saga: str
    key: UUID
    status: Phase
    state: str
    steps: str
    waiting_for: str | None
    since: datetime
    reason: str | None
    compensates: bool
    started_at: datetime
    finished_at: datetime | None
    position: int
    version: int
    correlation_id: UUID
    stuck: bool

    @property
    def place(self) -> Place:
        """Where it stands in a list."""
        return self.since, self.stream_id


@dataclass(frozen=True, slots=True)
class InstanceFilter:
    """Which instances; all that is given must hold. older_than, newer_than: it last changed before, or not before."""

    saga: str | None = None
    status: Phase | None = None
    key: UUID | None = None
    stuck: bool | None = None
    older_than: datetime | None = None
    newer_than: datetime | None = None

    @property
    def is_open(self) -> bool:
        """Whether only what is not over can match: an index has that."""
        return self.status in OPEN or bool(self.stuck)


ALL = InstanceFilter()


@dataclass(frozen=True, slots=True)
class SagaCount:
    """Instances of a saga that are not over, each by its status. stuck: None when the app does not have the saga."""

    saga: str
    running: int
    undoing: int
    parked: int
    stuck: int | None


def limits_of(domain: Domain) -> Limits:
    """As its sagas declare them."""
    return {saga.name: saga.stuck_after for saga in domain.sagas}


# ------------------------------------------------------------------------------------------------------------- to read

Reading: TypeAlias = "asyncpg.Connection | asyncpg.Pool"


async def listed(
    connection: Reading, where: InstanceFilter, limits: Limits, *, limit: int, after: Place | None = None
) -> list[Instance]:
    """Those that match, the one that changed last first; those after a place. One that changes meanwhile moves to the
    front."""
    status = None if where.status is None else where.status.value
    values = (where.saga, status, where.key, where.stuck, where.older_than, where.newer_than, limit)
    text = _LIST[where.is_open, after is not None]
    return [_instance(row) for row in await connection.fetch(text, *_columns(limits), *values, *(after or ()))]


async def shown(connection: Reading, id: UUID, limits: Limits) -> list[Instance]:  # noqa: A002 - whose it is
    """The instance with this id, its stream's; or those of this key, one a saga at most."""
    rows = await connection.fetch(_SQL["by_stream"], *_columns(limits), id)
    if not rows:
        rows = await connection.fetch(_SQL["by_key"], *_columns(limits), id)
    return [_instance(row) for row in rows]


async def counted(connection: Reading, limits: Limits) -> list[SagaCount]:
    """By saga, in the order of their names: those of the app, and others that have instances."""
    rows = await connection.fetch(_SQL["count"], *_columns(limits))
    found = {row["saga"]: SagaCount(**row) for row in rows}
    none = {name: SagaCount(name, running=0, undoing=0, parked=0, stuck=0) for name in limits}
    return [each for _, each in sorted((none | found).items())]


def _columns(limits: Limits) -> tuple[list[str], list[timedelta]]:
    return list(limits), list(limits.values())


def _instance(row: asyncpg.Record) -> Instance:
    status, waiting_for, reason = Phase(row["status"]), row["waiting_for"], row["reason"]
    if row["letter"] is not None:
        failed = f"{row['error'].splitlines()[0]} (dead letter at position {row['letter']})"
        reason = failed if reason is None else f"{reason}; {failed}"
        due = row["next_attempt_at"]
        waiting_for = "a person" if status is Phase.PARKED else f"another attempt at {due:%Y-%m-%d %H:%M:%S} UTC"
    said = {"status": status, "waiting_for": waiting_for, "reason": reason}
    return Instance(**({name: row[name] for name in Instance.__dataclass_fields__} | said))


# -------------------------------------------------------------------------------------------------------------- to act


async def retry(
    connection: asyncpg.Connection,
    id: UUID,  # noqa: A002 - whose it is
    by: str,
    *,
    attempts: int = ATTEMPTS,
) -> Instance:
    """Have what parks an instance tried again: the undo that was refused, the event or step that the code failed on.
    attempts: how often it is said to one that changes meanwhile.

    Raises:
        SagaUnknown, SagaAmbiguous: the id does not say which.  SagaNotParked.  SagaChanging: say it again.
    """
    found = await _one(connection, id)

    async def act(standing: asyncpg.Record) -> SagaRecord | None:
        due = await dead_letters.retry(connection, _letters_of(standing))
        if standing["status"] == Phase.PARKED.value:
            return SagaRetried(saga=standing["saga"], at=datetime.now(UTC), by=by)
        if not due:
            raise SagaNotParked(f"{_named(found)} is {standing['status']}: nothing of it waits for a person")
        return None

    await _say(connection, found, by, act, attempts)
    return found


async def retry_all(connection: asyncpg.Connection, saga: str | None, by: str) -> tuple[int, int]:
    """Have all that are parked tried again, of a saga or of all. How many; and how many were left, not being as they
    were last seen."""
    where, after, count, left = InstanceFilter(saga=saga, status=Phase.PARKED), None, 0, 0
    while page := await listed(connection, where, {}, limit=PAGE, after=after):
        for each in page:
            try:
                # Once: without a worker each of those that have changed would be waited for in vain.
                await retry(connection, each.stream_id, by, attempts=1)
                count += 1
            except SagaNotParked:
                continue  # another has done it meanwhile
            except SagaChanging:
                left += 1
        after = page[-1].place
    return count, left


async def abandon(connection: asyncpg.Connection, id: UUID, reason: str, by: str) -> Instance:  # noqa: A002
    """Give an instance up: nothing follows any more, nothing is undone, and what waits for it is passed over. A command
    of it that is on its way may still be accepted.

    Raises:
        SagaUnknown, SagaAmbiguous: the id does not say which.  SagaOver.  SagaChanging: say it again.
    """
    found = await _one(connection, id)

    async def act(standing: asyncpg.Record) -> SagaRecord:
        if Phase(standing["status"]) not in OPEN:
            raise SagaOver(f"{_named(found)} is over: it is {standing['status']}")
        await dead_letters.discard(connection, _letters_of(standing), everything=True)
        now = datetime.now(UTC)
        return SagaAbandoned(saga=standing["saga"], at=now, by=by, reason=reason, key=standing["key"])

    await _say(connection, found, by, act, ATTEMPTS)
    return found


async def _one(connection: asyncpg.Connection, id: UUID) -> Instance:  # noqa: A002
    found = await shown(connection, id, {})
    if not found:
        raise SagaUnknown(f"no instance of a saga has the id or the key {id}")
    if len(found) > 1:
        ids = ", ".join(f"{each.stream_id} ({each.saga})" for each in found)
        raise SagaAmbiguous(f"{id} is the key of several sagas; name one by its id: {ids}")
    return found[0]


async def _say(
    connection: asyncpg.Connection,
    found: Instance,
    by: str,
    act: Callable[[asyncpg.Record], Awaitable[SagaRecord | None]],
    attempts: int,
) -> None:
    """Act on what an instance is known to be, and append the record; from anew when it is not that any more."""
    for attempt in range(1, attempts + 1):
        try:
            async with connection.transaction():
                standing = await connection.fetchrow(_SQL["standing"], found.stream_id)
                assert standing is not None  # an instance that was seen stays
                record = await act(standing)
                if record is not None:
                    await _append(connection, found.stream_id, standing, record, by)
                return
        except _Changed:
            if attempt < attempts:
                await asyncio.sleep(backoff(attempt))
    raise SagaChanging(
        f"{_named(found)} has changed, and its worker has not said yet what it is now; try again, and see "
        "`headwater status` for whether one is running"
    )


class _Changed(Exception):
    """The stream has more than the instance is known to be."""


async def _append(
    connection: asyncpg.Connection, stream_id: UUID, standing: asyncpg.Record, record: SagaRecord, by: str
) -> None:
    one = Append(
        new_id(),
        stream_id,
        _unit(standing["saga"]),
        standing["version"],
        [stored_form(record)],
        standing["correlation_id"],
        actor=by,
    )
    # The last statement of its transaction: the whole log waits from here on.
    [appended] = await append(connection, [one])
    if appended.verdict is not Verdict.ACCEPTED:
        raise _Changed


def _letters_of(standing: asyncpg.Record) -> dead_letters.LetterFilter:
    return dead_letters.LetterFilter(_unit(standing["saga"]), standing["key"])


def _unit(saga: str) -> str:
    """A saga's name among the projections, and its streams' category: see `Saga.category`."""
    return f"{SAGA_PREFIX}{saga}"


def _named(found: Instance) -> str:
    return f"{found.saga} {found.key}"
