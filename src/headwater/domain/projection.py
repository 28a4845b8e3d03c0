"""A projection of one's own: a function that writes the events of the log into tables of one's own, exactly once.

    async def handle(connection: AsyncConnection, batch: Sequence[Recorded[A | B]]) -> None
    async def reset(connection: AsyncConnection) -> None

For what a read model cannot hold: a search index of PostgreSQL, a table that other programs read, sums over all rows.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Generic
from uuid import UUID

from typing_extensions import TypeVar

from headwater.domain.class_keywords import is_list
from headwater.domain.failure_policy import DEFAULT_POLICY, OnFailure
from headwater.domain.fields import key_from, name_of, require_sync
from headwater.domain.messages import Event, Recorded
from headwater.domain.stored_names import require_word
from headwater.errors import DefinitionError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

E = TypeVar("E", bound=Event, default=Any)

_UNIT = "projection "


@dataclass(frozen=True)
class Projection(Generic[E]):
    """Writes events into tables of your own, each exactly once.

        async def handle(connection: AsyncConnection, batch: Sequence[Recorded[MoneyDeposited]]) -> None:
            await connection.execute(insert(deposits), [{"amount": event.data.amount} for event in batch])

        async def reset(connection: AsyncConnection) -> None:
            await connection.execute(delete(deposits))

        Projection("deposits", events=[MoneyDeposited], handle=handle, reset=reset)

    name: identifies the projection; under another name it is a new one, which begins at the start of the log.
    events: the events that it takes.
    handle: called with the next events, in the order of the log, and a SQLAlchemy `AsyncConnection`. What it writes
    through this connection is committed together with the checkpoint, or not at all. It must not commit, and do nothing
    else outside of the database, since a batch may be repeated. Any exception is a failure.
    reset: empties the tables. `headwater rebuild NAME` calls it, and then hands over all events again; so does a worker
    after a restore, if the tables are ahead of the log.
    key: from an event to the key behind which later events wait when it is parked; by default its stream.
    on_failure: what happens after `handle` has failed on an event; by default it is retried, then parked. A batch that
    fails is handled again event by event, so that only the faulty one is set aside.

    Raises:
        DefinitionError: `events` is empty or no list of events, or `handle` or `reset` is no async function.
    """

    name: str
    events: Sequence[type[Event]]
    handle: Callable[[AsyncConnection, Sequence[Recorded[E]]], Awaitable[None]]
    reset: Callable[[AsyncConnection], Awaitable[None]]
    key: Callable[[E], UUID] | None = None
    on_failure: OnFailure = DEFAULT_POLICY

    def __post_init__(self) -> None:
        require_word("A projection's name", self.name)
        events = self.events
        if not is_list(events) or not events or not all(isinstance(e, type) and issubclass(e, Event) for e in events):
            raise DefinitionError(f"The projection {self.name}: events={events!r} must be a list of classes of events")
        for function in (self.handle, self.reset):
            if not iscoroutinefunction(function):
                raise DefinitionError(f"{name_of(function)} must be an async function")
        require_sync(self.key)
        object.__setattr__(self, "events", tuple(events))

    @property
    def unit(self) -> str:
        """Its name among the units of the workers, and in `headwater status`."""
        return f"{_UNIT}{self.name}"

    def key_of(self, event: Recorded[Any]) -> UUID:
        """Return the key behind which later events wait when this one is parked.

        Raises:
            TypeError: `key` returned something else than a UUID.
        """
        return event.stream_id if self.key is None else key_from(self.key, event.data)
