"""Read models: what people look at. A row is the fold of the events that are routed to its key.

Inside a fold there is nothing but the row and the event, no clock and no I/O: that is what makes rebuild and verify
true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Generic
from uuid import UUID

import msgspec
from typing_extensions import TypeVar, dataclass_transform

from headwater.domain.failure_policy import USUALLY, OnFailure
from headwater.domain.fields import Field, Kind, fields_of, hints_of, recorded_events, require_sync
from headwater.domain.messages import Event, Recorded, _MessageMeta
from headwater.errors import DefinitionError

M = TypeVar("M", bound="ReadModel")
E = TypeVar("E", bound=Event, default=Any)


@dataclass(frozen=True)
class Link:
    """Another read model that a row points at: `owner = Link(UserView, by="owner_id")`.

    Not annotated, so that neither msgspec nor a type checker takes it for a field that a fold must fill.
    """

    to: type[ReadModel]
    by: str


@dataclass(frozen=True, slots=True)
class ReadModelDeclaration:
    """The class keywords of a read model.

    name: the GraphQL type. key: the field that identifies a row. version: of the fold. indexes: the columns of each.
    """

    name: str
    key: str
    version: int
    indexes: tuple[tuple[str, ...], ...]


class _ReadModelMeta(_MessageMeta):
    """A message's metaclass, for rows."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class ReadModel(msgspec.Struct, metaclass=_ReadModelMeta, frozen=True, kw_only=True, gc=False):
    """A row that clients read. Its docstring describes the GraphQL type.

    Class keywords: `key` (the field that identifies a row, a UUID), `name` (the GraphQL type; the class name by
    default), `version` (raise it when the fold changes, so that the rows are made again) and `indexes` (columns, or
    tuples of columns, that are filtered by often).
    """

    __headwater_keywords__: ClassVar[tuple[str, ...]] = ("name", "key", "version", "indexes")
    __declared__: ClassVar[ReadModelDeclaration] = ReadModelDeclaration("ReadModel", "", 1, ())

    if TYPE_CHECKING:  # class keywords reach the metaclass; type checkers look here

        def __init_subclass__(
            cls,
            *,
            key: str,
            name: str | None = None,
            version: int = 1,
            indexes: Sequence[str | tuple[str, ...]] = (),
            **keywords: Any,
        ) -> None: ...

    @classmethod
    def __declare__(
        cls,
        *,
        key: str = "",
        name: str | None = None,
        version: int = 1,
        indexes: Sequence[str | tuple[str, ...]] = (),
    ) -> None:
        columns = tuple((index,) if isinstance(index, str) else tuple(index) for index in indexes)
        cls.__declared__ = ReadModelDeclaration(name or cls.__name__, key, version, columns)


@dataclass(frozen=True)
class View(Generic[M, E]):
    """A read model with its fold: `fold(row or None, event) -> row or None`; None removes the row.

    The events are taken from the fold's annotation `Recorded[A | B]`. Each goes to the row that `route` names; left
    out, that is the event's field with the name of the model's key. `on_failure` says what becomes of a key whose fold
    raised: a few retries, then parked. `history` keeps which events each row is folded from, so that one which gathers
    those of several streams can be read `asOf` the past, too: sixteen bytes an event, and an index.
    """

    model: type[M]
    fold: Callable[[M | None, Recorded[E]], M | None]
    route: Callable[[E], UUID] | None = None
    on_failure: OnFailure = USUALLY
    history: bool = False
    events: tuple[type[Event], ...] = field(init=False)
    fields: tuple[Field, ...] = field(init=False)
    links: dict[str, Link] = field(init=False)

    def __post_init__(self) -> None:
        require_sync(self.fold, self.route)
        object.__setattr__(self, "events", _events_of(self.fold))
        object.__setattr__(self, "fields", fields_of(self.model))
        links = {name: value for name, value in vars(self.model).items() if isinstance(value, Link)}
        object.__setattr__(self, "links", links)
        self._check()

    @property
    def name(self) -> str:
        """The read model's name, as in GraphQL."""
        return self.model.__declared__.name

    @property
    def key(self) -> str:
        """The field that identifies a row."""
        return self.model.__declared__.key

    def route_of(self, event: type[Event]) -> Callable[[Any], UUID]:
        """How to find the row of an event of this type. What a user's route gives is a UUID, or TypeError is raised."""
        if self.route is not None:
            return _checked(self.route)
        return attrgetter(self.key)  # `_check` has seen that it is a UUID field

    def _check(self) -> None:
        columns = {each.name: each for each in self.fields}
        where = self.model.__name__
        key = columns.get(self.key)
        if key is None or not key.is_key:
            raise DefinitionError(f"{where}: its key `{self.key}` must be one of its fields, of type UUID")
        for reserved in ("id", "position"):
            if reserved in columns:
                raise DefinitionError(
                    f"{where}.{reserved}: Headwater gives each row a `{reserved}` of its own; rename it"
                )
        for index in self.model.__declared__.indexes:
            for column in index:
                if column not in columns:
                    raise DefinitionError(f"{where}: the index on `{column}` names no field of it")
        for name, link in self.links.items():
            if link.by not in columns or columns[link.by].kind is not Kind.UUID:
                raise DefinitionError(f"{where}.{name}: `by={link.by}` must be a field of it, of type UUID")
        if self.route is None:
            for event in self.events:
                if not any(each.name == self.key and each.is_key for each in fields_of(event)):
                    raise DefinitionError(
                        f"{event.__name__} has no field `{self.key}: UUID` to find its {self.name} row by; give the "
                        "View a route"
                    )


def _checked(given: Callable[[Any], UUID]) -> Callable[[Any], UUID]:
    def route(event: Any) -> UUID:
        key = given(event)
        if not isinstance(key, UUID):
            raise TypeError(f"{given.__module__}.{given.__qualname__} gave {key!r}, which is no UUID")
        return key

    return route


def _events_of(fold: Callable[..., Any]) -> tuple[type[Event], ...]:
    taken = [events for name, hint in hints_of(fold).items() if name != "return" and (events := recorded_events(hint))]
    if len(taken) != 1:
        where = f"{fold.__module__}.{fold.__qualname__}"
        raise DefinitionError(f"{where}: its second parameter must be annotated Recorded[...] with the events it folds")
    return taken[0]
