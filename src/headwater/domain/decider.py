"""A decider: the pure functions that decide commands and evolve the state of one category of streams.

After Jérémie Chassaing's Decider: `decide(command, state) -> events`, `evolve(state, event) -> state`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, get_args, get_origin, get_type_hints, overload
from uuid import UUID

from headwater.domain.fields import fields_of, require_sync, union_arms
from headwater.domain.messages import Command, Event, InvalidInput, Refusal
from headwater.domain.serialization import StateCodec
from headwater.domain.stored_names import require_stored_name
from headwater.errors import DefinitionError, MisplacedEvent

C = TypeVar("C", bound=Command)
S = TypeVar("S")
E = TypeVar("E", bound=Event)
M = TypeVar("M", Command, Event)

LARGEST_CLAIM = 2500
"""The most bytes that a claim's name and value have together. PostgreSQL's index holds 2,704 with its overhead.
PostgreSQL compresses values, so that some longer ones would fit; but a limit that depends on the value could not be
explained to a user."""


@dataclass(frozen=True)
class Take:
    """Claim `value` for the stream, unique among the values of `name`. If another has it, refuse with `otherwise`.

    Raises:
        InvalidInput: name and value are larger than `LARGEST_CLAIM`. `path` is empty, since the field that the value
            comes from is not known here.
    """

    name: str
    value: str
    otherwise: Refusal

    def __post_init__(self) -> None:
        size = len(f"{self.name}{self.value}".encode(errors="surrogatepass"))
        if size > LARGEST_CLAIM:
            raise InvalidInput(
                [], f"Expected at most {LARGEST_CLAIM} bytes in the claim {self.name!r}, its name included, not {size}"
            )


@dataclass(frozen=True)
class Release:
    """Give up the claim on `value` of `name`, if the stream holds it."""

    name: str
    value: str


SNAPSHOT_EVERY = 1000
"""The default number of events from one snapshot of a stream to the next."""


def no_claims(state: object, event: object) -> Sequence[Take | Release]:
    """Return no claims: the default of a decider."""
    return ()


class Seen:
    """The states of the other streams that a decision consults, by their decider and id.

    The states are advice, not a lock: each may have changed since it was read, and may change before the decision is
    written. A refusal is based on states that were read after its command arrived; events may be based on states that
    this process had cached. An invariant belongs in one stream, in claims or in a saga.
    """

    __slots__ = ("_states",)

    def __init__(self, states: Mapping[tuple[str, UUID], object]) -> None:
        self._states = states

    def of(self, decider: Decider[Any, S, Any], stream_id: UUID) -> S:
        """Return the state of a stream that `consults` names; the decider's initial state if the stream has no events.

        Raises:
            DefinitionError: `consults` does not name the stream for this command.
        """
        try:
            return self._states[decider.category, stream_id]  # type: ignore[return-value]  # the state is of this very decider
        except KeyError:
            raise DefinitionError(
                f"A decision reads {decider.category} {stream_id}, which `consults` does not name for its command"
            ) from None


Consulted: TypeAlias = "tuple[AnyDecider, UUID]"
"""A stream that a decision consults: its decider and its id."""


@dataclass(frozen=True)
class SnapshotPolicy:
    """The settings of a decider's snapshots. every: events from one to the next. codec: of the state."""

    every: int
    codec: StateCodec


@dataclass(frozen=True)
class Decider(Generic[C, S, E]):
    """One category of streams, with the functions that decide its commands.

    category: the name of the category, as stored. key: the UUID field of each command and event that names the stream.
    initial: the state before the first event. claims: the claims that an event takes or releases, given the state
    before it. consults: the other streams whose states the decision of a command reads; `decide` then has a third
    parameter, `seen: Seen`, which is advice and no lock.

    snapshot_every: events from one snapshot of a stream's state to the next; 0 makes none. By default 1000, if the
    state can be stored as JSON. fold_version: raise it when `evolve` or an upcaster results in another state for the
    same events; older snapshots are then ignored. A change of the state's fields is detected without it.

    The decider's commands and events are read from the annotations of `decide` and `evolve`.

    Raises:
        DefinitionError: an annotation is missing or does not fit, or a message lacks the key.
    """

    category: str
    key: str
    initial: S
    decide: Callable[[C, S], Sequence[E]] | Callable[[C, S, Seen], Sequence[E]]
    evolve: Callable[[S, E], S]
    claims: Callable[[S, E], Sequence[Take | Release]] = no_claims
    consults: Callable[[C], Sequence[Consulted]] | None = None
    snapshot_every: int | None = None
    fold_version: int = 1
    commands: tuple[type[Command], ...] = field(init=False)
    events: tuple[type[Event], ...] = field(init=False)
    snapshots: SnapshotPolicy | None = field(init=False)

    if TYPE_CHECKING:  # overloads: `decide` takes `seen` exactly if there is a `consults`

        @overload
        def __init__(
            self,
            category: str,
            key: str,
            initial: S,
            decide: Callable[[C, S], Sequence[E]],
            evolve: Callable[[S, E], S],
            claims: Callable[[S, E], Sequence[Take | Release]] = no_claims,
            *,
            snapshot_every: int | None = None,
            fold_version: int = 1,
        ) -> None: ...

        @overload
        def __init__(
            self,
            category: str,
            key: str,
            initial: S,
            decide: Callable[[C, S, Seen], Sequence[E]],
            evolve: Callable[[S, E], S],
            claims: Callable[[S, E], Sequence[Take | Release]] = no_claims,
            *,
            consults: Callable[[C], Sequence[Consulted]],
            snapshot_every: int | None = None,
            fold_version: int = 1,
        ) -> None: ...

        def __init__(self, *args: object, **keywords: object) -> None: ...

    def __post_init__(self) -> None:
        require_stored_name("A category's name", self.category)
        require_sync(self.decide, self.evolve, self.claims, self.consults)
        commands, decided = self._read_decide()
        events = self._read_evolve()
        forgotten = [event.__name__ for event in decided if event not in events]
        if forgotten:
            raise DefinitionError(
                f"{self._name(self.evolve)} does not take {', '.join(forgotten)}, which {self._name(self.decide)}"
                " returns; add it to the annotation of its event and to its match"
            )
        for command in commands:
            self._require_key(command)
        for event in events:
            self._require_key(event)
        object.__setattr__(self, "commands", commands)
        object.__setattr__(self, "events", events)
        object.__setattr__(self, "snapshots", self._read_snapshots())

    def decided(self, command: C, state: S, seen: Seen | None = None) -> Sequence[E]:
        """Return the events of `decide`. `seen` is ignored if the decider consults no other streams."""
        decide: Callable[..., Sequence[E]] = self.decide
        return decide(command, state) if self.consults is None else decide(command, state, seen)

    def require_own(self, event: E, stream_id: UUID) -> None:
        """Raise MisplacedEvent if an event's key is not the id of the stream that it is written to.

        Projections route it by its key; `asOf` and verify read it by its stream. Both must be the same.
        """
        key = getattr(event, self.key, stream_id)
        if key is not stream_id and key != stream_id:
            name = type(event).__name__
            raise MisplacedEvent(
                f"{name} cannot be written to {self.category} {stream_id}: its field {self.key} is {key}"
            )

    def _read_decide(self) -> tuple[tuple[type[Command], ...], tuple[type[Event], ...]]:
        (command, *_), answer = _annotations(self.decide, 3 if self._takes_seen() else 2)
        if not get_args(answer) or not _is_sequence(get_origin(answer)):
            raise DefinitionError(
                f"{self._name(self.decide)} must have the annotated result list[...], with its events"
            )
        return (
            self._arms(self.decide, command, Command),
            self._arms(self.decide, get_args(answer)[0], Event),
        )

    def _takes_seen(self) -> bool:
        """Return True if `decide` has a third parameter. It must have one if the decider consults other streams, or
        none otherwise."""
        taken, _ = _hints(self.decide)
        if self.consults is None and Seen in taken:
            raise DefinitionError(
                f"{self._name(self.decide)} takes Seen, but its decider consults no streams; give the Decider a"
                " `consults=`"
            )
        if self.consults is not None and taken[2:] != [Seen]:
            raise DefinitionError(
                f"{self._name(self.decide)} must have a third parameter annotated Seen, because its decider has"
                " `consults=`"
            )
        return self.consults is not None

    def _read_evolve(self) -> tuple[type[Event], ...]:
        (_, event), _ = _annotations(self.evolve, 2)
        return self._arms(self.evolve, event, Event)

    def _read_snapshots(self) -> SnapshotPolicy | None:
        if self.fold_version < 1 or (self.snapshot_every or 0) < 0:
            raise DefinitionError(
                f"{self.category}: fold_version must be 1 or more; snapshot_every must be 0 (no snapshots) or more"
            )
        if self.snapshot_every == 0:
            return None
        (state, _), _ = _annotations(self.evolve, 2)
        try:
            return SnapshotPolicy(self.snapshot_every or SNAPSHOT_EVERY, StateCodec(state))
        except DefinitionError as error:
            if self.snapshot_every is None:
                return None  # the user did not ask for snapshots
            raise DefinitionError(f"{self.category}: its state cannot have snapshots: {error}") from error

    def _arms(self, function: Callable[..., object], annotation: object, root: type[M]) -> tuple[type[M], ...]:
        arms = union_arms(annotation)
        for arm in arms:
            if not (isinstance(arm, type) and issubclass(arm, root)):
                raise DefinitionError(f"{self._name(function)}: {arm} must be a subclass of {root.__name__}")
        return arms

    def _require_key(self, message: type[Command | Event]) -> None:
        if any(each.name == self.key and each.is_key for each in fields_of(message)):
            return
        raise DefinitionError(
            f"{message.__name__} needs a field `{self.key}: UUID`, the key of {self.category} streams"
        )

    @staticmethod
    def _name(function: Callable[..., object]) -> str:
        return f"{function.__module__}.{function.__qualname__}"


AnyDecider: TypeAlias = Decider[Any, Any, Any]
"""Any decider, whatever its messages and its state."""


def _hints(function: Callable[..., object]) -> tuple[list[object], object]:
    """Return the annotations of a function's parameters, and of its result or None."""
    try:
        hints = get_type_hints(function)
    except Exception as error:
        raise DefinitionError(
            f"{function.__module__}.{function.__qualname__}: an annotation cannot be resolved: {error}"
        ) from error
    answer = hints.pop("return", None)
    return list(hints.values()), answer


def _annotations(function: Callable[..., object], parameters: int) -> tuple[list[object], object]:
    """Return the annotations of a function's parameters and of its result. Raises DefinitionError for another count."""
    taken, answer = _hints(function)
    if len(taken) != parameters or answer is None:
        raise DefinitionError(
            f"{function.__module__}.{function.__qualname__} must have {parameters} parameters, each annotated, and an"
            " annotated result"
        )
    return taken, answer


def _is_sequence(origin: object) -> bool:
    return isinstance(origin, type) and issubclass(origin, Sequence)
