"""A reactor: what happens outside when something has happened here. A mail is sent, a webhook called.

    async def react(event: Recorded[A | B], key: str) -> None

It is called at least once for each event, and with the same key each time: send the key along, so that the other side
can tell a second delivery from a second event. It is no part of any read model: rebuilding one calls nobody.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from inspect import iscoroutinefunction
from typing import Any, Generic
from uuid import UUID

from typing_extensions import TypeVar

from headwater.domain.failure_policy import Park, Retry, Stop, policy_of
from headwater.domain.fields import hints_of, recorded_events, require_sync
from headwater.domain.messages import Event, Recorded
from headwater.errors import DefinitionError
from headwater.ids import derived_id

E = TypeVar("E", bound=Event, default=Any)

_UNIT = "reactor "


@dataclass(frozen=True)
class Reactor(Generic[E]):
    """A side effect outside.

    name: as operators read it; another name is another reactor. react: see the module; the events it takes are those of
    its annotation, and what it raises is a failure. order: events with the same key are given to it one after another,
    in the log's order; left out, those of one stream. on_failure: the failed event is set aside with all of its key
    behind it, tried again with growing pauses, for an hour or two, and then waits for a person. within: a reaction that
    takes longer is cancelled, and has failed. from_start: it is called for what happened before it was there, too.
    """

    name: str
    react: Callable[[Recorded[E], str], Awaitable[None]]
    order: Callable[[E], UUID] | None = None
    on_failure: Retry | Park = Retry(times=20, first=1.0, longest=600.0)  # noqa: RUF009 - it is frozen
    within: timedelta = timedelta(seconds=30)
    from_start: bool = False
    events: tuple[type[Event], ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise DefinitionError(f"A reactor's name is letters, digits and underscores, not {self.name!r}")
        object.__setattr__(self, "events", _events_of(self.react))
        require_sync(self.order)
        if isinstance(policy_of(self.on_failure).then, Stop):
            raise DefinitionError(f"{self.name}: a reactor cannot stop for one event; on_failure ends with Park()")
        if self.within <= timedelta(0):
            raise DefinitionError(f"{self.name}: within={self.within} must be above 0")

    @property
    def unit(self) -> str:
        """Its name among the projections."""
        return f"{_UNIT}{self.name}"

    def order_of(self, event: Recorded[E]) -> UUID:
        """The key in whose order an event is taken.

        Raises:
            TypeError: `order` gave something else than a UUID.
        """
        if self.order is None:
            return event.stream_id
        key = self.order(event.data)
        if not isinstance(key, UUID):
            raise TypeError(f"{self.order.__module__}.{self.order.__qualname__} gave {key!r}, which is no UUID")
        return key

    def key_for(self, event: Recorded[Event]) -> str:
        """The idempotency key of an event: the same each time, and another for each reactor."""
        return str(derived_id(event.event_id, self.unit))


def _events_of(react: Callable[..., Any]) -> tuple[type[Event], ...]:
    where = f"{react.__module__}.{react.__qualname__}"
    if not iscoroutinefunction(react):
        raise DefinitionError(f"{where} must be an async function")
    taken = [hint for name, hint in hints_of(react).items() if name != "return"]
    if len(taken) != 2 or not recorded_events(taken[0]) or taken[1] is not str:
        raise DefinitionError(
            f"{where}: its parameters must be annotated Recorded[...], with the events it takes, and str, for the "
            "idempotency key"
        )
    return recorded_events(taken[0])
