"""Invariants: what the events of every log of the app must fulfil. `headwater verify --all` checks them.

`verify` compares rows with their fold. A fold that takes the balance from the event finds no difference when that
balance is wrong. An invariant compares events with each other. It is a fold, too, and raises `Violation`:

    def holds(before: S | None, event: Recorded[A | B]) -> S | None

`before` is what it returned for the previous event of the same key; None for the first one, and after None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Generic, TypeAlias
from uuid import UUID

from typing_extensions import TypeVar

from headwater.domain.class_keywords import is_list
from headwater.domain.fields import hints_of, key_from, name_of, recorded_events, require_sync, union_arms
from headwater.domain.messages import Event, Recorded
from headwater.domain.stored_names import require_word
from headwater.errors import DefinitionError, HeadwaterError

S = TypeVar("S", default=Any)
E = TypeVar("E", bound=Event, default=Any)


class Violation(HeadwaterError):
    """Events contradict an invariant. Its text is the sentence in the report of `headwater verify`.

        raise Violation(f"the balance would be {balance}")

    The later events of the same key are not checked any more.
    """


@dataclass(frozen=True)
class Invariant(Generic[S, E]):
    """A condition on events, which `headwater verify --all` checks on the whole log.

        Invariant("balance", over=AccountEvent, holds=adds_up)

    name: in reports, and as an argument of `headwater verify`; no read model may have it.
    over: the events that it looks at: a class, a union of classes, or a list.
    holds: the function, see the module. It uses nothing but its arguments: no clock, no I/O. It raises `Violation` when
    the events contradict each other. The events of that key are then not looked at any further.
    key: from an event to the key whose events are checked together; by default, the stream. What `holds` returns is
    kept in memory for each key; None is not.

    Raises:
        DefinitionError: the name, an event of `over`, or the annotation of `holds` is wrong.
    """

    name: str
    over: type[E] | Sequence[type[E]] | UnionType
    holds: Callable[[S | None, Recorded[E]], S | None]
    key: Callable[[E], UUID] | None = None
    events: tuple[type[Event], ...] = field(init=False)

    def __post_init__(self) -> None:
        require_word("An invariant's name", self.name)
        require_sync(self.holds, self.key)
        object.__setattr__(self, "events", self._events())
        self._check_holds()

    def key_of(self, event: Recorded[E]) -> UUID:
        """Return the key whose events this one is checked with.

        Raises:
            TypeError: `key` returned something else than a UUID.
        """
        if self.key is None:
            return event.stream_id
        return key_from(self.key, event.data)

    def _events(self) -> tuple[type[Event], ...]:
        over: Any = self.over
        given = over if is_list(over) else (over,)
        events = tuple(dict.fromkeys(arm for each in given for arm in union_arms(each)))
        for event in events:
            if not (isinstance(event, type) and issubclass(event, Event)):
                raise DefinitionError(f"The invariant {self.name}: over={event!r} is no Event")
        if not events:
            raise DefinitionError(f"The invariant {self.name}: `over` is empty; list the events that it looks at")
        return events

    def _check_holds(self) -> None:
        hints = [hint for name, hint in hints_of(self.holds).items() if name != "return"]
        taken = recorded_events(hints[-1]) if len(hints) == 2 else ()
        for event in self.events:
            if event not in taken:
                raise DefinitionError(
                    f"{name_of(self.holds)}: its second parameter must be annotated Recorded[...] with the events of "
                    f"the invariant {self.name}; {event.__name__} is missing"
                )


AnyInvariant: TypeAlias = Invariant[Any, Any]
"""Any invariant, whatever its state and its events."""
