"""Sagas in GraphQL, for operators: `sagas` as pages, and `saga`."""

from __future__ import annotations

import base64
from collections.abc import Awaitable
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import msgspec
import strawberry

from headwater.domain.saga_state import Phase, StepState
from headwater.errors import BadUserInput, SearchTooWide
from headwater.eventstore.epoch import Epoch
from headwater.graphql.building import Info, Omittable, resolver
from headwater.graphql.inputs import given_values
from headwater.graphql.interfaces import PageInfo
from headwater.graphql.paging import page_info, page_size
from headwater.graphql.scalars import JSON, Position
from headwater.sagas.instances import StoredStep
from headwater.sagas.operations import Instance, InstanceFilter, Limits, Place, listed, shown

T = TypeVar("T")

strawberry.enum(
    Phase,
    name="SagaStatus",
    description="The phase of a saga. UNDOING: accepted steps are being compensated. PARKED: it waits for a person.",
)
strawberry.enum(
    StepState,
    name="SagaStepState",
    description="The state of a step. DROPPED: not issued, or no longer waited for. UNDONE: compensated.",
)


@strawberry.type(description="A command of a saga, and its state.")
class SagaStep:
    number: int = strawberry.field(description="Its place among the steps of the saga, from 1.")
    command: str
    command_id: UUID = strawberry.field(description="The id under which it is issued; its events have the same.")
    input: JSON = strawberry.field(description="The fields of the command.")
    state: StepState
    undoes: int | None = strawberry.field(
        description="The number of the step that it compensates; its own number if it compensates no single step."
    )
    since: datetime | None = strawberry.field(description="When it was issued.")
    due_at: datetime | None = strawberry.field(description="The time by which it must be accepted.")
    reason: str | None = strawberry.field(description="The code of its refusal, or TIMED_OUT.")


@strawberry.type(description="An instance of a saga, as recorded in its stream.")
class Saga:
    id: UUID = strawberry.field(description="The id of its stream: events(filter: { streamId }) shows its history.")
    name: str
    key: UUID = strawberry.field(description="The key by which its events are assigned to it.")
    status: Phase
    state: JSON | None = strawberry.field(
        description="The state that its code has folded; null if that is None, or while the code cannot fold it."
    )
    steps: list[SagaStep]
    waiting_for: str | None = strawberry.field(description="In words; null if it is over.")
    since: datetime = strawberry.field(description="When it last changed.")
    reason: str | None = strawberry.field(
        description="Why it gave up, is parked or will be retried, or the reason given when it was abandoned."
    )
    stuck: bool = strawberry.field(description="True if it is not over and has taken longer than its saga declares.")
    compensates: bool = strawberry.field(description="True if steps were undone, or are being undone.")
    started_at: datetime
    finished_at: datetime | None
    correlation_id: UUID = strawberry.field(description="What all that followed from one request has in common.")
    version: int = strawberry.field(
        description="The version of its stream; 0 if it has no stream yet, because its first event is parked."
    )
    position: Position = strawberry.field(description="The position of its last record in the log.")


@strawberry.type(description="A Saga and its cursor.")
class SagaEdge:
    cursor: str
    node: Saga


@strawberry.type(description="A page of Sagas. The one that changed last comes first.")
class SagaConnection:
    edges: list[SagaEdge]
    nodes: list[Saga]
    page_info: PageInfo


@strawberry.input(description="Selects Sagas. Entries side by side must all hold.")
class SagaFilter:
    saga: str | None = strawberry.field(default=strawberry.UNSET, description="The name of the saga.")
    status: Phase | None = strawberry.UNSET
    key: UUID | None = strawberry.UNSET
    stuck: bool | None = strawberry.UNSET
    older_than: datetime | None = strawberry.field(
        default=strawberry.UNSET, description="Last changed before this time."
    )
    newer_than: datetime | None = strawberry.field(
        default=strawberry.UNSET, description="Last changed at this time or after it."
    )


def sagas_query(limits: Limits) -> Any:
    """Return the query `sagas(filter, first, after)`."""

    async def resolve(
        root: object, info: Info, filter: SagaFilter | None = None, first: int | None = None, after: str | None = None
    ) -> SagaConnection:
        size = page_size(info, first, None, None)
        assert size is not None  # it goes forward
        place = None if after is None else _place(after)
        where = InstanceFilter(**given_values(filter, "filter"))
        reading = listed(info.context.serving.database.pool, where, limits, limit=size + 1, after=place)
        found = await _answered(reading)
        return _connection(found[:size], info.context.epoch, cut=len(found) > size, follows=after is not None)

    return strawberry.field(
        resolver=resolver(
            resolve,
            SagaConnection,
            filter=Omittable(SagaFilter),
            first=Omittable(int),
            after=Omittable(str),
        ),
        description="Instances of sagas, for operators: the state of each, and what it waits for.",
    )


def saga_query(limits: Limits) -> Any:
    """Return the query `saga(id)`."""

    async def resolve(root: object, info: Info, id: UUID) -> Saga | None:
        found = await _answered(shown(info.context.serving.database.pool, id, limits))
        if len(found) > 1:
            ids = ", ".join(f"{each.stream_id} ({each.saga})" for each in found)
            raise BadUserInput(f"{id} is the key of several sagas; use the id of one of them: {ids}.")
        return _saga(found[0], info.context.epoch) if found else None

    return strawberry.field(
        resolver=resolver(resolve, Saga | None, id=UUID),
        description="An instance of a saga by its id, or by its key if only one saga has that key.",
    )


async def _answered(reading: Awaitable[T]) -> T:
    try:
        return await reading
    except asyncpg.QueryCanceledError as error:
        raise SearchTooWide("The search took too long. Narrow it by status, saga or time.") from error
    except asyncpg.DataError as error:
        raise BadUserInput("The filter holds a value that no saga can have.") from error


def _cursor(place: Place) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def _place(cursor: str) -> Place:
    try:
        place: Place = msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=Place)
    except ValueError as error:  # of base64 and of msgspec
        raise BadUserInput("The cursor does not belong to sagas; start again without it.") from error
    return place


def _connection(found: list[Instance], epoch: Epoch, *, cut: bool, follows: bool) -> SagaConnection:
    nodes = [_saga(each, epoch) for each in found]
    cursors = [_cursor(each.place) for each in found]
    return SagaConnection(
        edges=[SagaEdge(cursor=cursor, node=node) for cursor, node in zip(cursors, nodes, strict=True)],
        nodes=nodes,
        page_info=page_info(cursors, has_next=cut, has_previous=follows),
    )


def _saga(found: Instance, epoch: Epoch) -> Saga:
    return Saga(
        id=found.stream_id,
        name=found.saga,
        key=found.key,
        status=found.status,
        state=None if found.state == "null" else JSON(found.state.encode()),
        steps=[_step(each) for each in msgspec.json.decode(found.steps, type=list[StoredStep])],
        waiting_for=found.waiting_for,
        since=found.since,
        reason=found.reason,
        stuck=found.stuck,
        compensates=found.compensates,
        started_at=found.started_at,
        finished_at=found.finished_at,
        correlation_id=found.correlation_id,
        version=found.version,
        position=Position(epoch.place(found.position)),
    )


def _step(each: StoredStep) -> SagaStep:
    values = msgspec.structs.asdict(each)
    return SagaStep(**(values | {"input": JSON(bytes(each.input))}))
