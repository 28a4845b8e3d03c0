"""The interfaces that generated types implement."""

from __future__ import annotations

from uuid import UUID

import strawberry

from headwater.graphql.scalars import Position


@strawberry.interface(description="Anything with a row of its own, found by `node(id)`.")
class Node:
    id: strawberry.ID = strawberry.field(
        description="Globally unique: the key's UUID as it stands in events and commands."
    )


@strawberry.interface(name="Refusal", description="A business refusal: data, not an error.")
class RefusalInterface:
    code: str
    message: str


@strawberry.interface(description="What was accepted, and its place in the log.")
class Accepted:
    command_id: UUID
    stream_id: UUID
    version: int
    position: Position


@strawberry.type(description="Where a page begins and ends, and whether there is more.")
class PageInfo:
    has_next_page: bool
    has_previous_page: bool
    start_cursor: str | None
    end_cursor: str | None
