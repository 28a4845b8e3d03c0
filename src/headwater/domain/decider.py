"""A decider: the pure functions that decide the commands and evolve the state of one category of streams.

After Jérémie Chassaing's Decider: `decide(command, state) -> events`, `evolve(state, event) -> state`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar
from uuid import UUID

from headwater.domain.claims import Release, Take
from headwater.domain.class_keywords import is_list
from headwater.domain.context import Consult, Context
from headwater.domain.deciding import DecideFunction, read_command, read_decide, read_event
from headwater.domain.fields import Field, carried_fields_of, fields_of, hints_of, name_of
from headwater.domain.messages import Command, Event, Refusal
from headwater.domain.mutability import require_immutable
from headwater.domain.row_key import KeyFields
from headwater.domain.serialization import StateCodec
from headwater.domain.stored_names import require_stored_name
from headwater.errors import DefinitionError, LogError, MisplacedEvent
from headwater.ids import stream_id_of

S = TypeVar("S")
M = TypeVar("M", Command, Event)

SNAPSHOT_EVERY = 1000
"""The default number of events from one snapshot of a stream to the next."""

Answer: TypeAlias = Event | Refusal | Sequence[Event] | None
"""The result of a decide function: what has happened, why it is refused, or None if there is nothing to do."""

Decide: TypeAlias = Callable[[Any, S], Answer] | Callable[[Any, S, Context], Answer]
Evolve: TypeAlias = Callable[[S, Any], S]


@dataclass(frozen=True)
class SnapshotPolicy:
    """The settings of a decider's snapshots. every: events from one to the next. codec: of the state."""

    every: int
    codec: StateCodec


@dataclass(frozen=True, eq=False)
class Decider(Generic[S]):
    """One category of streams, with the functions that decide its commands.

        accounts = Decider("account", key="account_id", initial=Account(), decide=[open_, withdraw], evolve=evolve)

    category: the name of the category, as stored.
    key: the field of each command that names the stream. Its events need no such field. If it is no UUID, but a str, an
    int, a date or an enum, the id of the stream is derived from the category and the key.
    initial: the state before the first event.
    decide: a function, or several: `(command, state)` or `(command, state, context: Context)`. The annotation of the
    first parameter names the commands that it takes. That of the result names what it may return: events, lists of
    them, refusals, and None if there may be nothing to do.
    evolve: a function, or several: from the state and an event to the next state. Together they take all events.
    claims: `(state, event)` returns the claims that an event takes or releases, given the state before it. The
    annotation of `event` names the events that have claims.
    consults: `(command)` returns the other streams whose states the decision reads, in `context.seen`. Its annotation
    names the commands that consult streams.
    snapshot_every: events from one snapshot of a stream's state to the next; 0 makes none. By default 1000, if the
    state can be stored as JSON.
    fold_version: raise it when `evolve` or an upcaster results in another state for the same events; older snapshots
    are then ignored. A change of the state's fields is detected without it.

    Raises:
        DefinitionError: an annotation is missing or does not fit, a command or an event is taken twice or not at all,
            or a command lacks the key.
    """

    category: str
    key: str
    initial: S
    decide: Decide[S] | Sequence[Decide[S]]
    evolve: Evolve[S] | Sequence[Evolve[S]]
    claims: Callable[[S, Any], Sequence[Take | Release]] | None = None
    consults: Callable[[Any], Sequence[Consult]] | None = None
    snapshot_every: int | None = None
    fold_version: int = 1
    decide_of: Mapping[type[Command], DecideFunction] = field(init=False)
    evolve_of: Mapping[type[Event], Evolve[S]] = field(init=False)
    claiming: frozenset[type[Event]] = field(init=False)
    consulting: frozenset[type[Command]] = field(init=False)
    snapshots: SnapshotPolicy | None = field(init=False)
    key_fields: KeyFields = field(init=False)

    def __post_init__(self) -> None:
        require_stored_name("A category's name", self.category)
        decide_of, evolve_of = self._read_decide(), self._read_evolve()
        require_immutable(f"The state of {self.category}", self.state_type)
        for decide in dict.fromkeys(decide_of.values()):
            self._require_evolved(decide, evolve_of)
        key = self._read_key(decide_of)
        for event in evolve_of:
            self._require_same_key(event, key)
        object.__setattr__(self, "key_fields", KeyFields([key]))
        object.__setattr__(self, "decide_of", decide_of)
        object.__setattr__(self, "evolve_of", evolve_of)
        object.__setattr__(self, "claiming", self._read_claims(evolve_of))
        object.__setattr__(self, "consulting", self._read_consults(decide_of))
        object.__setattr__(self, "snapshots", self._read_snapshots())

    @property
    def commands(self) -> tuple[type[Command], ...]:
        """The commands that it decides, in the order of its functions."""
        return tuple(self.decide_of)

    @property
    def events(self) -> tuple[type[Event], ...]:
        """The events of its streams."""
        return tuple(self.evolve_of)

    @property
    def state_type(self) -> object:
        """The annotation of the state, in `evolve`."""
        return next(iter(hints_of(_functions(self.evolve, "")[0]).values()))

    def decided(self, command: Command, state: S, context: Context) -> Sequence[Event] | Refusal:
        """Return the events that follow from a command, or its refusal.

        Raises:
            UndeclaredAnswer: the annotation of the decide function does not name what it returned.
        """
        return self.decide_of[type(command)].decided(command, state, context)

    def evolved(self, state: S, event: Event) -> S:
        """Return the state after an event.

        Raises:
            LogError: the event is none of this decider's.
        """
        evolve = self.evolve_of.get(type(event))
        if evolve is None:
            raise LogError(
                f"{type(event).__name__} is no event of {self.category}: no `evolve` of its decider takes it"
            )
        return evolve(state, event)

    def claimed(self, command: Command, state: S, event: Event) -> Sequence[Take | Release]:
        """Return what an event takes and releases. command: that it follows from. state: before it.

        Raises:
            UndeclaredAnswer: the command's decide function does not name the refusal of a claim.
        """
        if self.claims is None or type(event) not in self.claiming:
            return ()
        claims = self.claims(state, event)
        for each in claims:
            if isinstance(each, Take):
                self.decide_of[type(command)].require_declared(each.otherwise)
        return claims

    def consulted(self, command: Command) -> Sequence[Consult]:
        """Return the other streams whose states the decision of a command reads."""
        return () if self.consults is None or type(command) not in self.consulting else self.consults(command)

    def stream_id(self, key: object) -> UUID:
        """Return the id of the stream with this key.

        Raises:
            TypeError, ValueError: the key has another type, or cannot be stored.
        """
        if self.key_fields.is_uuid:
            return key  # type: ignore[return-value]  # such a key is the id of the stream
        return stream_id_of(self.category, self.key_fields.text(self.key_fields.take(key)))

    def require_own(self, event: Event, stream_id: UUID) -> None:
        """Raise MisplacedEvent unless the event's key, if it has one, is the stream that it is written to.

        Projections route it by its key; `asOf` and verify read it by its stream. Both must be the same.
        """
        key = getattr(event, self.key, None)
        if key is None or key is stream_id:
            return
        if self.stream_id(key) != stream_id:
            name = type(event).__name__
            raise MisplacedEvent(
                f"{name} cannot be written to {self.category} {stream_id}: its field {self.key} is {key}"
            )

    def _read_decide(self) -> dict[type[Command], DecideFunction]:
        taken: dict[type[Command], DecideFunction] = {}
        for function in _functions(self.decide, f"{self.category}: decide"):
            decide = read_decide(function)
            for command in decide.commands:
                if command in taken:
                    raise DefinitionError(
                        f"{command.__name__} is taken by both {name_of(taken[command].function)} and"
                        f" {name_of(function)}; remove it from one of them"
                    )
                taken[command] = decide
        return taken

    def _read_evolve(self) -> dict[type[Event], Evolve[S]]:
        taken: dict[type[Event], Evolve[S]] = {}
        for function in _functions(self.evolve, f"{self.category}: evolve"):
            for event in read_event(function):
                if event in taken:
                    raise DefinitionError(
                        f"{event.__name__} is taken by both {name_of(taken[event])} and {name_of(function)}; remove it"
                        " from one of them"
                    )
                taken[event] = function
        return taken

    def _read_claims(self, events: Mapping[type[Event], object]) -> frozenset[type[Event]]:
        if self.claims is None:
            return frozenset()
        return self._known(self.claims, read_event(self.claims), events, f"the `evolve` of {self.category}")

    def _read_consults(self, commands: Mapping[type[Command], object]) -> frozenset[type[Command]]:
        if self.consults is None:
            return frozenset()
        return self._known(self.consults, read_command(self.consults), commands, f"the `decide` of {self.category}")

    @staticmethod
    def _known(
        function: Callable[..., object], taken: Sequence[type[M]], known: Mapping[type[M], object], by: str
    ) -> frozenset[type[M]]:
        for each in taken:
            if each not in known:
                raise DefinitionError(f"{name_of(function)} takes {each.__name__}, which {by} does not take")
        return frozenset(taken)

    def _require_evolved(self, decide: DecideFunction, taken: Mapping[type[Event], Evolve[S]]) -> None:
        forgotten = sorted(event.__name__ for event in decide.events | decide.listed if event not in taken)
        if forgotten:
            raise DefinitionError(
                f"{self.category}: no `evolve` takes {', '.join(forgotten)}, which {name_of(decide.function)} returns;"
                " add it to the annotation of an evolve function's event"
            )

    def _read_key(self, commands: Iterable[type[Command]]) -> Field:
        """Return the key's field, which every command must have with one type."""
        keys = {
            command: next((each for each in fields_of(command) if each.name == self.key), None) for command in commands
        }
        first = next((key for key in keys.values() if key is not None and key.is_key_part), None)
        for command, key in keys.items():
            if key is None or first is None or not key.is_key_part or not key.matches(first):
                kind = "UUID" if first is None else (first.enum or first.kind.value).__name__
                raise DefinitionError(
                    f"{command.__name__} needs a field `{self.key}: {kind}`, the key of {self.category} streams"
                )
        if first is None:
            raise DefinitionError(f"{self.category}: its `decide` takes no command")
        return first

    def _require_same_key(self, event: type[Event], key: Field) -> None:
        """Check an event's field with the name of the key, if it has one: it must be able to hold the key."""
        if self.key not in event.__struct_fields__:
            return
        given = next((each for each in carried_fields_of(event) if each.name == self.key), None)
        if given is None or not given.is_key_part or not given.matches(key):
            kind = (key.enum or key.kind.value).__name__
            raise DefinitionError(
                f"{event.__name__}.{self.key} must be of type {kind}, because it is the key of {self.category} streams;"
                " leave the field out or rename it"
            )

    def _read_snapshots(self) -> SnapshotPolicy | None:
        if self.fold_version < 1 or (self.snapshot_every or 0) < 0:
            raise DefinitionError(
                f"{self.category}: fold_version must be 1 or more; snapshot_every must be 0 (no snapshots) or more"
            )
        if self.snapshot_every == 0:
            return None
        try:
            return SnapshotPolicy(self.snapshot_every or SNAPSHOT_EVERY, StateCodec(self.state_type))
        except DefinitionError as error:
            if self.snapshot_every is None:
                return None  # the user did not ask for snapshots
            raise DefinitionError(f"{self.category}: its state cannot have snapshots: {error}") from error


AnyDecider: TypeAlias = Decider[Any]
"""Any decider, whatever its state."""


def _functions(given: Any, what: str) -> Sequence[Callable[..., Any]]:
    """Return the functions of a declaration that takes one or a list of them."""
    functions = tuple(given) if is_list(given) else (given,)
    if not functions or not all(map(callable, functions)):
        raise DefinitionError(f"{what}={given!r} must be a function or a list of functions")
    return functions
