"""A reactor: a side effect outside of the log, such as an e-mail or a webhook, for each event that it takes.

    async def react(event: Recorded[A | B], key: str) -> None

It is called at least once for each event, with the same key each time. Pass the key on, so that the receiver recognizes
a second delivery. A rebuild of a read model does not call reactors.
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
from headwater.domain.fields import hints_of, key_from, recorded_events, require_sync
from headwater.domain.messages import Event, Recorded
from headwater.domain.stored_names import require_word
from headwater.errors import DefinitionError
from headwater.ids import derived_id

E = TypeVar("E", bound=Event, default=Any)

_UNIT = "reactor "


@dataclass(frozen=True)
class Reactor(Generic[E]):
    """A side effect outside of the log, at least once for each event.

        async def tell(event: Recorded[MoneyDeposited], key: str) -> None: ...
        Reactor("ledger", tell, order=lambda event: event.owner_id)

    name: identifies the reactor; under another name it is a new one.
    react: the function, see the module. Its annotation names the events that it takes. Any exception is a failure.
    order: from an event to a key. Events of one key are delivered one after another, in the order of the log. The
    default key is the stream.
    on_failure: a failed event is parked, with the later ones of its key, and retried with growing pauses for an hour or
    two. After the last retry it waits for an operator.
    within: the timeout of one call.
    from_start: deliver the events before the reactor's first start, too.
    """

    name: str
    react: Callable[[Recorded[E], str], Awaitable[None]]
    order: Callable[[E], UUID] | None = None
    on_failure: Retry | Park = Retry(times=20, first=1.0, longest=600.0)  # noqa: RUF009 - it is frozen
    within: timedelta = timedelta(seconds=30)
    from_start: bool = False
    events: tuple[type[Event], ...] = field(init=False)

    def __post_init__(self) -> None:
        require_word("A reactor's name", self.name)
        object.__setattr__(self, "events", _events_of(self.react))
        require_sync(self.order)
        if isinstance(policy_of(self.on_failure).then, Stop):
            raise DefinitionError(f"{self.name}: a reactor cannot stop for one event; on_failure ends with Park()")
        if self.within <= timedelta(0):
            raise DefinitionError(f"{self.name}: within={self.within} must be above 0")

    @property
    def unit(self) -> str:
        """Its name among the units of the workers."""
        return f"{_UNIT}{self.name}"

    def order_of(self, event: Recorded[E]) -> UUID:
        """Return the key whose events are delivered in order.

        Raises:
            TypeError: `order` returned something else than a UUID.
        """
        if self.order is None:
            return event.stream_id
        return key_from(self.order, event.data)

    def key_for(self, event: Recorded[Event]) -> str:
        """Return the idempotency key of an event: the same for each delivery, another one for each reactor."""
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
