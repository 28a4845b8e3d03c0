"""The audit trail in GraphQL: `events`, as pages and as a subscription."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Any
from uuid import UUID

import strawberry

from headwater.errors import BadUserInput
from headwater.eventstore.audit_trail import END, Entry, Trail, Wanted
from headwater.eventstore.epoch import Epoch, Place
from headwater.graphql.building import Info, Omittable, resolver
from headwater.graphql.inputs import given_values
from headwater.graphql.interfaces import PageInfo
from headwater.graphql.paging import page_info, page_size
from headwater.graphql.scalars import JSON, Position

_LARGEST_LIST = 100


@strawberry.type(description="An event as it is stored in the log.")
class Event:
    position: Position
    event_id: UUID
    stream_id: UUID
    category: str
    version: int = strawberry.field(description="Its place in its stream, from 1.")
    type: str
    schema_version: int = strawberry.field(description="The version of the event type in which data was written.")
    data: JSON = strawberry.field(description="As it was written, in schemaVersion: not rewritten, not upcasted.")
    recorded_at: datetime
    actor: str | None
    command_id: UUID | None
    correlation_id: UUID = strawberry.field(description="Shared by all events that followed from one request.")
    causation_id: UUID | None = strawberry.field(description="The id of the event or the command that caused it.")


@strawberry.type(description="An Event and its cursor, which is its position.")
class EventEdge:
    cursor: Position
    node: Event


class _Page:
    """A page of entries. It looks for more entries on either side when `pageInfo` is selected."""

    def __init__(
        self,
        trail: Trail,
        wanted: Wanted,
        after: int,
        before: int,
        entries: list[Entry],
        cut: bool,
        backward: bool,
        epoch: Epoch,
    ) -> None:
        self.epoch = epoch
        self.entries = entries
        self._trail = trail
        self._wanted = wanted
        self._after, self._before = after, before
        self._cut = cut
        self._backward = backward

    async def info(self) -> PageInfo:
        first = self.entries[0].position if self.entries else self._after + 1
        last = self.entries[-1].position if self.entries else self._before - 1
        earlier = self._cut if self._backward else self._after > 0 and await self._any(0, first)
        later = self._cut if not self._backward else self._before < END and await self._any(last, END)
        cursors = [self.epoch.place(each).spell() for each in (first, last)] if self.entries else []
        return page_info(cursors, has_next=later, has_previous=earlier)

    async def _any(self, after: int, before: int) -> bool:
        # Reads from the page outwards, so that the nearest entry is found first.
        backward = after == 0
        return bool(await self._trail.read(self._wanted, after, before, limit=1, backward=backward))


async def _page_info(root: EventConnection, info: Info) -> PageInfo:
    return await info.context.once.get(root.page, root.page.info)


@strawberry.type(description="A page of Events, in the order of the log.")
class EventConnection:
    page: strawberry.Private[_Page]
    edges: list[EventEdge]
    nodes: list[Event]
    page_info: PageInfo = strawberry.field(resolver=resolver(_page_info, PageInfo))


@strawberry.input(description="Selects Events. Entries side by side must all hold.")
class EventFilter:
    stream_id: UUID | None = strawberry.UNSET
    category: str | None = strawberry.UNSET
    types: list[str] | None = strawberry.UNSET
    correlation_id: UUID | None = strawberry.UNSET
    actor: str | None = strawberry.UNSET
    since: datetime | None = strawberry.field(
        name="from", default=strawberry.UNSET, description="Recorded at this time or after it."
    )
    until: datetime | None = strawberry.field(
        name="to", default=strawberry.UNSET, description="Recorded before this time."
    )


def events_query() -> Any:
    """Return the query `events(filter, first, after, last, before)`."""

    async def resolve(
        root: object,
        info: Info,
        filter: EventFilter | None = None,
        first: int | None = None,
        after: Place | None = None,
        last: int | None = None,
        before: Place | None = None,
    ) -> EventConnection:
        first = page_size(info, first, last, before)
        trail, wanted = info.context.serving.trail, _wanted(filter)
        low = 0 if after is None else await info.context.position(after)
        high = END if before is None else await info.context.position(before)
        backward = last is not None
        limit = last if last is not None else first
        assert limit is not None  # page_size gives one when last does not
        entries = await trail.read(wanted, low, high, limit=limit + 1, backward=backward)
        cut = len(entries) > limit
        if cut:
            entries = entries[1:] if backward else entries[:-1]
        return _connection(_Page(trail, wanted, low, high, entries, cut, backward, info.context.epoch))

    return strawberry.field(
        resolver=resolver(
            resolve,
            EventConnection,
            filter=Omittable(EventFilter),
            first=Omittable(int),
            after=Omittable(Position),
            last=Omittable(int),
            before=Omittable(Position),
        ),
        description="The audit trail: what happened, when, by whom and why.",
    )


def events_subscription() -> Any:
    """Return the subscription `events(filter, after)`."""

    async def resolve(
        root: object, info: Info, filter: EventFilter | None = None, after: Place | None = None
    ) -> AsyncGenerator[Event, None]:
        trail, wanted = info.context.serving.trail, _wanted(filter)
        if wanted.until is not None:
            raise BadUserInput("A subscription to events has no end: leave `to` out of its filter.")
        head = await trail.head()
        start = head if wanted.since is None else 0
        if after is not None:
            start = await info.context.position(after)
            if start > head:
                raise BadUserInput(f"The log ends at position {head}; a subscription cannot resume after {start}.")
        telemetry, opened = info.context.serving.telemetry, time.time()
        telemetry.followers += 1
        try:
            async with aclosing(trail.follow(wanted, start)) as entries:
                async for entry, epoch in entries:
                    yield _event(entry, epoch)
                    telemetry.handed_over("events", entry.position, opened)  # resumed when the entry was taken
        finally:
            telemetry.followers -= 1

    return strawberry.subscription(
        resolver=resolver(
            resolve,
            AsyncGenerator[Event, None],
            filter=Omittable(EventFilter),
            after=Omittable(Position),
        ),
        description="Each event once and in order, after a position; without a position, from now on. The error "
        "LOG_WENT_BACK ends it when events that it sent are lost.",
    )


def _wanted(given: EventFilter | None) -> Wanted:
    values = given_values(given, "filter")
    if len(values.get("types", ())) > _LARGEST_LIST:
        raise BadUserInput(f"A list in a filter may hold {_LARGEST_LIST} values.")
    return Wanted(**values)


def _connection(page: _Page) -> EventConnection:
    nodes = [_event(entry, page.epoch) for entry in page.entries]
    edges = [EventEdge(cursor=node.position, node=node) for node in nodes]
    return EventConnection(page=page, edges=edges, nodes=nodes)


def _event(entry: Entry, epoch: Epoch) -> Event:
    return Event(
        position=Position(epoch.place(entry.position)),
        event_id=entry.event_id,
        stream_id=entry.stream_id,
        category=entry.category,
        version=entry.version,
        type=entry.type,
        schema_version=entry.schema_version,
        data=JSON(entry.data.encode()),
        recorded_at=entry.recorded_at,
        actor=entry.actor,
        command_id=entry.command_id,
        correlation_id=entry.correlation_id,
        causation_id=entry.causation_id,
    )
