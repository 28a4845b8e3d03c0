"""Saga instances for operators: list them, retry parked ones, abandon them.

Lists read `headwater.sagas`, which the saga's worker updates after it has read an instance's records. An instance is
parked when an undo was refused, or when one of its events is a dead letter that waits for an operator.

A decision of an operator becomes a record in the instance's stream. It is appended at the version that the operator's
process read, and the saga's worker reads it there.
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
"""The phases of an instance that has not ended."""

ATTEMPTS = 6
"""Attempts to append a record to an instance that changes meanwhile."""

PAGE = 500

Limits: TypeAlias = Mapping[str, timedelta]
"""The time after which an instance is stuck, by the name of its saga. The app declares it; the database does not have
it."""

Place: TypeAlias = tuple[datetime, UUID]
"""An instance's place in a list: its `since` and `stream_id`."""


class SagaUnknown(HeadwaterError):
    """No instance of a saga has this id, or this key."""


class SagaAmbiguous(HeadwaterError):
    """The key belongs to instances of several sagas. Give the id of one instead."""


class SagaOver(HeadwaterError):
    """The instance has ended, so it cannot be abandoned."""


class SagaNotParked(HeadwaterError):
    """The instance is not parked, so there is nothing to retry."""


class SagaChanging(HeadwaterError):
    """The instance's stream is ahead of its row, so no record was appended. Try again once a worker has caught up."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance of a saga as its row and its dead letter describe it.

    state, steps: JSON text, see `docs/api.md`. since: the time of the last change. reason: why it gives up, is parked,
    or is retried. position, version: of its last record. If its first event is parked, the position of that event and
    version 0.
    """

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
        """Its place in a list."""
        return self.since, self.stream_id


@dataclass(frozen=True, slots=True)
class InstanceFilter:
    """Selects instances that meet all given conditions.

    older_than: the last change was before this time. newer_than: it was at this time or later.
    """

    saga: str | None = None
    status: Phase | None = None
    key: UUID | None = None
    stuck: bool | None = None
    older_than: datetime | None = None
    newer_than: datetime | None = None

    @property
    def is_open(self) -> bool:
        """True if only instances that have not ended can match. An index covers these."""
        return self.status in OPEN or bool(self.stuck)


ALL = InstanceFilter()


@dataclass(frozen=True, slots=True)
class SagaCount:
    """The numbers of a saga's open instances, by status. stuck: None if the app does not have the saga."""

    saga: str
    running: int
    undoing: int
    parked: int
    stuck: int | None


def limits_of(domain: Domain) -> Limits:
    """Return the limits that the sagas of an app declare."""
    return {saga.name: saga.stuck_after for saga in domain.sagas}


# ------------------------------------------------------------------------------------------------------------- reading

Reading: TypeAlias = "asyncpg.Connection | asyncpg.Pool"


async def listed(
    connection: Reading, where: InstanceFilter, limits: Limits, *, limit: int, after: Place | None = None
) -> list[Instance]:
    """Return the instances that match, the latest change first. after: the place of the last one of the previous page.

    An instance that changes between two pages moves to the front.
    """
    status = None if where.status is None else where.status.value
    values = (where.saga, status, where.key, where.stuck, where.older_than, where.newer_than, limit)
    text = _LIST[where.is_open, after is not None]
    return [_instance(row) for row in await connection.fetch(text, *_columns(limits), *values, *(after or ()))]


async def shown(connection: Reading, id: UUID, limits: Limits) -> list[Instance]:  # noqa: A002 - the word of the CLI and the API
    """Return the instance whose stream has this id, or else all instances with this key, at most one of each saga."""
    rows = await connection.fetch(_SQL["by_stream"], *_columns(limits), id)
    if not rows:
        rows = await connection.fetch(_SQL["by_key"], *_columns(limits), id)
    return [_instance(row) for row in rows]


async def counted(connection: Reading, limits: Limits) -> list[SagaCount]:
    """Return the counts by saga, in the order of names: of the app's sagas, and of others that have instances."""
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
    changed = {"status": status, "waiting_for": waiting_for, "reason": reason}
    return Instance(**({name: row[name] for name in Instance.__dataclass_fields__} | changed))


# -------------------------------------------------------------------------------------------------------------- acting


async def retry(
    connection: asyncpg.Connection,
    id: UUID,  # noqa: A002 - the word of the CLI and the API
    by: str,
    *,
    attempts: int = ATTEMPTS,
) -> Instance:
    """Retry what parks an instance: an undo that was refused, or an event or a step on which the app's code failed.

    id: of the instance, or its key. by: the operator, for the log.

    Raises:
        SagaUnknown, SagaAmbiguous: the id does not identify one instance.
        SagaNotParked: there is nothing to retry.
        SagaChanging: the instance changed during each of the attempts.
    """
    found = await _one(connection, id)

    async def act(row: asyncpg.Record) -> SagaRecord | None:
        due = await dead_letters.retry(connection, _letters_of(row))
        if row["status"] == Phase.PARKED.value:
            return SagaRetried(saga=row["saga"], at=datetime.now(UTC), by=by)
        if not due:
            raise SagaNotParked(f"{_named(found)} is {row['status']}: there is nothing to retry")
        return None

    await _act_on(connection, found, by, act, attempts)
    return found


async def retry_all(connection: asyncpg.Connection, saga: str | None, by: str) -> tuple[int, int]:
    """Retry all parked instances of a saga, or of all sagas.

    Returns the number of retried instances, and the number of those that were left out because they changed.
    """
    where, after, count, left = InstanceFilter(saga=saga, status=Phase.PARKED), None, 0, 0
    while page := await listed(connection, where, {}, limit=PAGE, after=after):
        for each in page:
            try:
                # One attempt: if no worker runs, waiting for the row of a changed instance is in vain.
                await retry(connection, each.stream_id, by, attempts=1)
                count += 1
            except SagaNotParked:
                continue  # another operator has retried it meanwhile
            except SagaChanging:
                left += 1
        after = page[-1].place
    return count, left


async def abandon(
    connection: asyncpg.Connection,
    id: UUID,  # noqa: A002 - the word of the CLI and the API
    reason: str,
    by: str,
    *,
    attempts: int = ATTEMPTS,
) -> Instance:
    """End an instance: no further step runs, nothing is undone, and its dead letters are discarded. A command that is
    being issued may still be accepted.

    Raises:
        SagaUnknown, SagaAmbiguous: the id does not identify one instance.
        SagaOver: it has ended already.
        SagaChanging: the instance changed during each of the attempts.
    """
    found = await _one(connection, id)

    async def act(row: asyncpg.Record) -> SagaRecord:
        if Phase(row["status"]) not in OPEN:
            raise SagaOver(f"{_named(found)} is over: it is {row['status']}")
        await dead_letters.discard(connection, _letters_of(row), everything=True)
        now = datetime.now(UTC)
        return SagaAbandoned(saga=row["saga"], at=now, by=by, reason=reason, key=row["key"])

    await _act_on(connection, found, by, act, attempts)
    return found


async def _one(connection: asyncpg.Connection, id: UUID) -> Instance:  # noqa: A002 - the word of the CLI and the API
    found = await shown(connection, id, {})
    if not found:
        raise SagaUnknown(f"no instance of a saga has the id or the key {id}")
    if len(found) > 1:
        ids = ", ".join(f"{each.stream_id} ({each.saga})" for each in found)
        raise SagaAmbiguous(f"{id} is the key of instances of several sagas; give the id of one: {ids}")
    return found[0]


async def _act_on(
    connection: asyncpg.Connection,
    found: Instance,
    by: str,
    act: Callable[[asyncpg.Record], Awaitable[SagaRecord | None]],
    attempts: int,
) -> None:
    """Call `act` with an instance's row and append the record that it returns. Start over if the stream is ahead.

    Raises:
        SagaChanging: the stream was ahead of the row during each of the attempts.
    """
    for attempt in range(1, attempts + 1):
        try:
            async with connection.transaction():
                row = await connection.fetchrow(_SQL["row"], found.stream_id)
                assert row is not None  # the rows of instances are never removed
                record = await act(row)
                if record is not None:
                    await _append(connection, found.stream_id, row, record, by)
                return
        except _Changed:
            if attempt < attempts:
                await asyncio.sleep(backoff(attempt))
    raise SagaChanging(
        f"{_named(found)} has changed, and no worker has updated its row yet; try again, and check with "
        "`headwater status` that a worker is running"
    )


class _Changed(Exception):
    """The stream is ahead of the instance's row."""


async def _append(
    connection: asyncpg.Connection, stream_id: UUID, row: asyncpg.Record, record: SagaRecord, by: str
) -> None:
    one = Append(
        new_id(),
        stream_id,
        _unit(row["saga"]),
        row["version"],
        [stored_form(record)],
        row["correlation_id"],
        actor=by,
    )
    # The last statement of its transaction: it locks the log until the commit.
    [appended] = await append(connection, [one])
    if appended.verdict is not Verdict.ACCEPTED:
        raise _Changed


def _letters_of(row: asyncpg.Record) -> dead_letters.LetterFilter:
    return dead_letters.LetterFilter(_unit(row["saga"]), str(row["key"]))


def _unit(saga: str) -> str:
    """Return the name of a saga's unit, which is the category of its streams, too: see `Saga.category`."""
    return f"{SAGA_PREFIX}{saga}"


def _named(found: Instance) -> str:
    return f"{found.saga} {found.key}"
