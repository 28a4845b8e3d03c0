"""A decider: how one kind of stream decides on commands and evolves by events. Three pure functions and a start.

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
from headwater.errors import DefinitionError, MisplacedEvent

C = TypeVar("C", bound=Command)
S = TypeVar("S")
E = TypeVar("E", bound=Event)


LARGEST_CLAIM = 2500
"""Bytes of a claim's name and value together, at most. PostgreSQL's index takes 2,704 with what it adds; and more of
what can be compressed, by which nobody could go."""


@dataclass(frozen=True)
class Take:
    """Make `value` belong to the stream among all values of `name`, or be refused with `otherwise`.

    Raises:
        InvalidInput: the two are larger than `LARGEST_CLAIM`. They come from a command, though nobody here knows from
            which field of it.
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
    """Give `value` of `name` back, if the stream holds it."""

    name: str
    value: str


SNAPSHOT_EVERY = 1000
"""Events of a stream from one snapshot to the next, where a decider says nothing."""


def no_claims(state: Any, event: Any) -> Sequence[Take | Release]:
    """The claims of a decider that has none."""
    return ()


class Seen:
    """The states of the other streams that a decision consults, by their decider and id.

    They are as the log had them at some time: each may have changed since, and may change before the decision is
    written. A refusal rests on states that were read after its command came; events may rest on what this process
    remembers. So it is advice. What must hold belongs in one stream, in claims or in a saga.
    """

    __slots__ = ("_states",)

    def __init__(self, states: Mapping[tuple[str, UUID], Any]) -> None:
        self._states = states

    def of(self, decider: Decider[Any, S, Any], stream_id: UUID) -> S:
        """The state of a stream that `consults` names; the decider's initial one where nothing has happened."""
        try:
            return self._states[decider.category, stream_id]  # type: ignore[no-any-return]  # of this very decider
        except KeyError:
            raise DefinitionError(
                f"a decision looks at {decider.category} {stream_id}, which `consults` does not name for its command"
            ) from None


Consulted: TypeAlias = "tuple[Decider[Any, Any, Any], UUID]"
"""A stream that a decision consults: its decider and its id."""


@dataclass(frozen=True)
class SnapshotPolicy:
    """How a decider's states are kept: after so many events of a stream each, and as what."""

    every: int
    codec: StateCodec


@dataclass(frozen=True)
class Decider(Generic[C, S, E]):
    """One kind of stream.

    category: the streams' kind, as stored. key: the field of each command and event that names the stream, a UUID.
    initial: the state before the first event. claims: what an event makes unique across streams, seen from the state
    before it. consults: which other streams' states the decision of a command looks at, mostly none; `decide` then has
    a third parameter, `seen: Seen`. That is advice and no lock: see `Seen`.

    snapshot_every: events of a stream from one kept state to the next, so that a long one need not be read from its
    start; 0 is never. Left out: 1000, where the state can be kept as JSON. fold_version: raise it when `evolve`, or an
    upcaster, comes to another state by the same events; what was kept before is then left alone. A change of the
    state's fields is noticed without.

    Commands and events are taken from the annotations of `decide` and `evolve`.
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

    if (
        TYPE_CHECKING
    ):  # `decide` takes `seen` exactly if there is a `consults`, which a dataclass's signature cannot say

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
        require_sync(self.decide, self.evolve, self.claims, self.consults)
        commands, decided = self._read_decide()
        events = self._read_evolve()
        forgotten = [event.__name__ for event in decided if event not in events]
        if forgotten:
            raise DefinitionError(
                f"{self._name(self.evolve)} does not take {', '.join(forgotten)}, which {self._name(self.decide)} gives"
                "; add it to the annotation of its event and to its match"
            )
        for message in (*commands, *events):
            self._require_key(message)
        object.__setattr__(self, "commands", commands)
        object.__setattr__(self, "events", events)
        object.__setattr__(self, "snapshots", self._read_snapshots())

    def decided(self, command: C, state: S, seen: Seen | None = None) -> Sequence[E]:
        """Return the events that `decide` gives. `seen` is ignored if the decider consults no other streams."""
        decide: Callable[..., Sequence[E]] = self.decide
        return decide(command, state) if self.consults is None else decide(command, state, seen)

    def require_own(self, event: E, stream_id: UUID) -> None:
        """Raise MisplacedEvent when an event says that it is of another stream than the one it is to be written to.

        Read models find its row by what it says, and the past and verify by where it is written.
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
            raise DefinitionError(f"{self._name(self.decide)} must be annotated to return a list of events")
        return (
            self._arms(self.decide, command, Command),
            self._arms(self.decide, get_args(answer)[0], Event),
        )

    def _takes_seen(self) -> bool:
        """Whether `decide` has a third parameter; it has one just where the decider consults."""
        taken, _ = _hints(self.decide)
        if self.consults is None and Seen in taken:
            raise DefinitionError(
                f"{self._name(self.decide)} takes Seen, but its decider consults nothing; give the Decider `consults=`"
            )
        if self.consults is not None and taken[2:] != [Seen]:
            raise DefinitionError(
                f"{self._name(self.decide)} must have a third parameter annotated Seen, for what its decider consults"
            )
        return self.consults is not None

    def _read_evolve(self) -> tuple[type[Event], ...]:
        (_, event), _ = _annotations(self.evolve, 2)
        return self._arms(self.evolve, event, Event)

    def _read_snapshots(self) -> SnapshotPolicy | None:
        if self.fold_version < 1 or (self.snapshot_every or 0) < 0:
            raise DefinitionError(f"{self.category}: fold_version begins at 1, and snapshot_every at 0, which is never")
        if self.snapshot_every == 0:
            return None
        (state, _), _ = _annotations(self.evolve, 2)
        try:
            return SnapshotPolicy(self.snapshot_every or SNAPSHOT_EVERY, StateCodec(state))
        except DefinitionError as error:
            if self.snapshot_every is None:
                return None  # nobody asked for them
            raise DefinitionError(f"{self.category}: its state cannot have snapshots: {error}") from error

    def _arms(self, function: Callable[..., Any], annotation: Any, root: type[Any]) -> tuple[type[Any], ...]:
        arms = union_arms(annotation)
        for arm in arms:
            if not (isinstance(arm, type) and issubclass(arm, root)):
                raise DefinitionError(f"{self._name(function)}: {arm} is not {root.__name__} of Headwater")
        return arms

    def _require_key(self, message: type[Any]) -> None:
        if any(each.name == self.key and each.is_key for each in fields_of(message)):
            return
        raise DefinitionError(
            f"{message.__name__} needs a field `{self.key}: UUID`, the key of {self.category} streams"
        )

    @staticmethod
    def _name(function: Callable[..., Any]) -> str:
        return f"{function.__module__}.{function.__qualname__}"


def _hints(function: Callable[..., Any]) -> tuple[list[Any], Any]:
    """The annotations of a function's parameters, and of what it returns or None."""
    try:
        hints = get_type_hints(function)
    except Exception as error:
        raise DefinitionError(
            f"{function.__module__}.{function.__qualname__}: an annotation cannot be resolved: {error}"
        ) from error
    answer = hints.pop("return", None)
    return list(hints.values()), answer


def _annotations(function: Callable[..., Any], parameters: int) -> tuple[list[Any], Any]:
    """The annotations of a function's parameters, which are so many, and of what it returns."""
    taken, answer = _hints(function)
    if len(taken) != parameters or answer is None:
        raise DefinitionError(
            f"{function.__module__}.{function.__qualname__} must have {parameters} parameters, each annotated, and an"
            " annotated result"
        )
    return taken, answer


def _is_sequence(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Sequence)
