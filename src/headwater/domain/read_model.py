"""Read models: the rows that clients query. A row is the fold of the events that are routed to its key.

A fold uses nothing but the row and the event: no clock and no I/O. So a rebuild results in the same rows, and verify
can compare them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias
from uuid import UUID

import msgspec
from typing_extensions import TypeVar, dataclass_transform

from headwater.domain.class_keywords import KeywordStruct, is_list, is_whole, name_given
from headwater.domain.failure_policy import DEFAULT_POLICY, OnFailure
from headwater.domain.fields import Field, Kind, fields_of, hints_of, key_from, recorded_events, require_sync
from headwater.domain.messages import Event, Recorded
from headwater.errors import DefinitionError

M = TypeVar("M", bound="ReadModel")
E = TypeVar("E", bound=Event, default=Any)


@dataclass(frozen=True)
class Link:
    """A reference from a row to a row of another read model: `owner = Link(UserView, by="owner_id")`.

    Written without an annotation, so that neither msgspec nor a type checker takes it for a field.
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


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class ReadModel(KeywordStruct):
    """A row that clients read. Its docstring describes the GraphQL type.

    Class keywords: `key` (the field that identifies a row, a UUID), `name` (the GraphQL type; the class name by
    default), `version` (raise it when the fold changes, so that the rows are rebuilt) and `indexes` (columns, or tuples
    of columns, that clients often filter by).
    """

    __declared__: ClassVar[ReadModelDeclaration] = ReadModelDeclaration("ReadModel", "", 1, ())

    if TYPE_CHECKING:

        def __init_subclass__(
            cls,
            *,
            key: str,
            name: str | None = None,
            version: int = 1,
            indexes: Sequence[str | tuple[str, ...]] = (),
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
        if not key:
            raise DefinitionError(
                f"{cls.__name__}: its key is missing; name the field that identifies a row: "
                f'class {cls.__name__}(ReadModel, key="...")'
            )
        if not is_whole(version) or version < 1:
            raise DefinitionError(f"{cls.__name__}: version={version!r} must be a whole number, 1 or more")
        if not is_list(indexes) or not all(map(_is_index, indexes)):
            raise DefinitionError(
                f"{cls.__name__}: indexes={indexes!r} must be a list of names of fields, or of tuples of them"
            )
        columns = tuple((index,) if isinstance(index, str) else tuple(index) for index in indexes)
        cls.__declared__ = ReadModelDeclaration(name_given(cls, name), key, version, columns)


def _is_index(index: str | tuple[str, ...]) -> bool:
    return isinstance(index, str) or (is_list(index) and all(isinstance(column, str) for column in index))


@dataclass(frozen=True)
class View(Generic[M, E]):
    """A read model with its fold: `fold(row or None, event) -> row or None`; None deletes the row.

    The events are read from the fold's annotation `Recorded[A | B]`. route: from an event to the key of its row; by
    default, the event's field that is named like the model's key. on_failure: what happens to a key whose fold raises;
    by default it is retried, then parked. history: stores which events each row is folded from, so that a row which
    gathers events of several streams can be read `asOf` a past position. It costs sixteen bytes an event and an index.
    """

    model: type[M]
    fold: Callable[[M | None, Recorded[E]], M | None]
    route: Callable[[E], UUID] | None = None
    on_failure: OnFailure = DEFAULT_POLICY
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
        """Return the function from an event of this type to its row's key. It raises TypeError if that is no UUID."""
        if self.route is not None:
            return partial(key_from, self.route)
        return attrgetter(self.key)  # `_check` ensures that it is a UUID field

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
                    raise DefinitionError(f"{where}: it has no field `{column}`, which `indexes` names")
        for name, link in self.links.items():
            if link.by not in columns or columns[link.by].kind is not Kind.UUID:
                raise DefinitionError(f"{where}.{name}: `by={link.by}` must name a field of {where}, of type UUID")
        if self.route is None:
            for event in self.events:
                if not any(each.name == self.key and each.is_key for each in fields_of(event)):
                    raise DefinitionError(
                        f"{event.__name__} has no field `{self.key}: UUID` to find its {self.name} row by; give the "
                        "View a route"
                    )


AnyView: TypeAlias = View[Any]
"""Any view, whatever its rows and its events."""


def _events_of(fold: Callable[..., object]) -> tuple[type[Event], ...]:
    taken = [events for name, hint in hints_of(fold).items() if name != "return" and (events := recorded_events(hint))]
    if len(taken) != 1:
        where = f"{fold.__module__}.{fold.__qualname__}"
        raise DefinitionError(f"{where}: its second parameter must be annotated Recorded[...] with the events it folds")
    return taken[0]
