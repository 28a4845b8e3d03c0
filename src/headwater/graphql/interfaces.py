"""The GraphQL interfaces that generated types implement, and `PageInfo`."""

from __future__ import annotations

import enum
from uuid import UUID

import strawberry

from headwater.graphql.scalars import Position


@strawberry.interface(description="A row of a read model. `node(id)` finds it.")
class Node:
    id: strawberry.ID = strawberry.field(description="Globally unique and opaque: give it back as it came.")


@strawberry.enum(
    description="CURRENT: the row shows every event up to the position of its read model. PARKED: the app failed on an"
    " event of the row, which waits with the later ones until it is retried; the row is as it was before."
)
class RowState(enum.Enum):
    CURRENT = "current"
    PARKED = "parked"


@strawberry.interface(name="Refusal", description="A command was refused by a business rule: data, not an error.")
class AnyRefusal:
    code: str
    message: str


@strawberry.interface(description="A command was accepted. Holds its place in the log.")
class Accepted:
    command_id: UUID
    stream_id: UUID
    version: int
    position: Position


@strawberry.type(description="The first and the last cursor of a page, and whether more follows on either side.")
class PageInfo:
    has_next_page: bool
    has_previous_page: bool
    start_cursor: str | None
    end_cursor: str | None
