"""`asOf`: a moment of the log, as a position or a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

import strawberry

from headwater.errors import BadUserInput
from headwater.eventstore.audit_trail import Trail
from headwater.eventstore.epoch import Place
from headwater.graphql.scalars import Position


@strawberry.input(one_of=True, description="A past state: that after a position, or that at a time. Give one of them.")
class AsOf:
    position: Position | None = strawberry.UNSET
    time: datetime | None = strawberry.UNSET


async def position_of(given: AsOf, resolve: Callable[[Place], Awaitable[int]], trail: Trail) -> int:
    """Return the position of a moment.

    A time stands for the last position recorded at or before it; a time in the future, for the end of the log.

    Raises:
        BadUserInput: the position is beyond the end of the log.
        LogWentBack: the position is of a lost part of the log.
    """
    if isinstance(given.time, datetime):
        return await trail.position_at(given.time)
    assert isinstance(given.position, Place)  # @oneOf: validated
    position = await resolve(given.position)
    head = await trail.head()
    if position > head:
        raise BadUserInput(f"The log ends at position {head}; there is no state as of {position} yet.")
    return position
