"""Read models: the rows that clients query. A row is the fold of the events that are routed to its key.

A fold uses nothing but the row and the event: no clock and no I/O. So a rebuild results in the same rows, and verify
can compare them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias

import msgspec
from typing_extensions import TypeVar, dataclass_transform

from headwater.domain.class_keywords import KeywordStruct, is_list, is_whole, name_given
from headwater.domain.failure_policy import DEFAULT_POLICY, OnFailure
from headwater.domain.fields import (
    Field,
    carried_fields_of,
    fields_of,
    hints_of,
    name_of,
    recorded_events,
    require_sync,
)
from headwater.domain.messages import Event, Recorded
from headwater.domain.plurals import plural as english_plural
from headwater.domain.row_key import MOST_FIELDS, KeyFields, KeyValue
from headwater.errors import DefinitionError

M = TypeVar("M", bound="ReadModel")
E = TypeVar("E", bound=Event, default=Any)
Fold: TypeAlias = Callable[[M | None, Recorded[E]], M | None] | Callable[[M | None, Recorded[E], Any], M | None]
"""From a row or None and an event to the next row or None. A third parameter is given the key of the row."""

Key: TypeAlias = KeyValue | tuple[KeyValue, ...]
Keys: TypeAlias = Key | Sequence[Key] | None
"""The result of a route: the key of one row, a list of the keys of several rows, or None for no row. A key that has
several fields is a tuple."""


@dataclass(frozen=True)
class Link:
    """A reference from a row to a row of another read model: `owner = Link(UserView, by="owner_id")`.

    by: the field that holds the other row's key; a tuple of fields if that key has several.

    Written without an annotation, so that neither msgspec nor a type checker takes it for a field.
    """

    to: type[ReadModel]
    by: str | tuple[str, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields that hold the key of the other row."""
        return (self.by,) if isinstance(self.by, str) else self.by


@dataclass(frozen=True, slots=True)
class ReadModelDeclaration:
    """The class keywords of a read model.

    name: the GraphQL type. plural: of the name. key: the fields that identify a row. version: of the fold. indexes:
    the columns of each.
    """

    name: str
    plural: str
    key: tuple[str, ...]
    version: int
    indexes: tuple[tuple[str, ...], ...]


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class ReadModel(KeywordStruct):
    """A row that clients read. Its docstring describes the GraphQL type.

        class AccountView(ReadModel, name="Account", key="account_id", indexes=["owner_id"]):
            \"\"\"An account, as its owner sees it.\"\"\"
            account_id: UUID
            owner_id: UUID
            balance: Annotated[Decimal, Exact(places=2)]

    Class keywords: `key` (the field that identifies a row, or a tuple of fields; each is a UUID, a str, an int, a date
    or an enum, and never None), `name` (the GraphQL type; the class name by
    default), `plural` (of the name, for the field of all rows; the English plural by default), `version` (raise it when
    the fold changes, so that the rows are rebuilt) and `indexes` (columns, or tuples of columns, that clients often
    filter by).
    """

    __declared__: ClassVar[ReadModelDeclaration] = ReadModelDeclaration("ReadModel", "ReadModels", (), 1, ())

    if TYPE_CHECKING:

        def __init_subclass__(
            cls,
            *,
            key: str | tuple[str, ...],
            name: str | None = None,
            plural: str | None = None,
            version: int = 1,
            indexes: Sequence[str | tuple[str, ...]] = (),
        ) -> None: ...

    @classmethod
    def __declare__(
        cls,
        *,
        key: str | tuple[str, ...] = (),
        name: str | None = None,
        plural: str | None = None,
        version: int = 1,
        indexes: Sequence[str | tuple[str, ...]] = (),
    ) -> None:
        names = (key,) if isinstance(key, str) else key
        if not names or key == "":
            raise DefinitionError(
                f"{cls.__name__}: its key is missing; name the field that identifies a row: "
                f'class {cls.__name__}(ReadModel, key="...")'
            )
        if not is_list(names) or not all(isinstance(each, str) for each in names):
            raise DefinitionError(f"{cls.__name__}: key={key!r} must be the name of a field, or a tuple of names")
        if not is_whole(version) or version < 1:
            raise DefinitionError(f"{cls.__name__}: version={version!r} must be a whole number, 1 or more")
        if not is_list(indexes) or not all(map(_is_index, indexes)):
            raise DefinitionError(
                f"{cls.__name__}: indexes={indexes!r} must be a list of names of fields, or of tuples of them"
            )
        columns = tuple((index,) if isinstance(index, str) else tuple(index) for index in indexes)
        name = name_given(cls, name)
        if not isinstance(plural, str | None):
            raise DefinitionError(f"{cls.__name__}: plural={plural!r} must be text")
        cls.__declared__ = ReadModelDeclaration(name, plural or english_plural(name), tuple(names), version, columns)


def _is_index(index: str | tuple[str, ...]) -> bool:
    return isinstance(index, str) or (is_list(index) and all(isinstance(column, str) for column in index))


@dataclass(frozen=True)
class View(Generic[M, E]):
    """A read model with its fold: `fold(row or None, event) -> row or None`; None deletes the row.

        View(AccountView, [opened, moved, closed])
        View(SalesDay, counted, route=lambda event: event.recorded_at.date())

    fold: one function, or a list of functions that each fold some of the events. The events are read from their
    annotations `Recorded[A | B]`. A function with a third parameter is given the key of the row there: with a route to
    several rows, it could not know it of a row that does not exist yet.

    route: from a recorded event to the key of its row, to a list of the keys of several rows, or to None for an event
    that changes no row. Each of the rows is folded by itself. The key of several fields is a tuple. By default, the
    key is the event's field that is named like the model's key; if it has none, the id of its stream.

    on_failure: what happens to a key whose fold raises; by default it is retried, then parked. history: stores which
    events each row is folded from, so that a row which gathers events of several streams can be read `asOf` a past
    position. It costs sixteen bytes an event and an index.

    Raises:
        DefinitionError: an annotation is missing, or a declaration does not fit.
    """

    model: type[M]
    fold: Callable[..., M | None]
    route: Callable[[Recorded[E]], Keys] | None = None
    on_failure: OnFailure = DEFAULT_POLICY
    history: bool = False
    events: tuple[type[Event], ...] = field(init=False)
    fields: tuple[Field, ...] = field(init=False)
    links: dict[str, Link] = field(init=False)
    key: KeyFields = field(init=False)
    takes_key: bool = field(init=False)

    if TYPE_CHECKING:  # a list is given, and one function for all events is kept

        def __init__(
            self,
            model: type[M],
            fold: Fold[M, E] | Sequence[Fold[M, Any]],
            route: Callable[[Recorded[E]], Keys] | None = None,
            on_failure: OnFailure = DEFAULT_POLICY,
            history: bool = False,
        ) -> None: ...

    def __post_init__(self) -> None:
        require_sync(self.route)
        given: Any = self.fold
        fold = FoldByEvent(given) if is_list(given) else given
        object.__setattr__(self, "fold", fold)
        object.__setattr__(self, "events", _events_of(fold))
        object.__setattr__(self, "takes_key", _takes_key(fold))
        object.__setattr__(self, "fields", fields_of(self.model))
        links = {name: value for name, value in vars(self.model).items() if isinstance(value, Link)}
        object.__setattr__(self, "links", links)
        object.__setattr__(self, "key", self._key_fields())
        self._check()

    @property
    def name(self) -> str:
        """The read model's name, as in GraphQL."""
        return self.model.__declared__.name

    def by_stream(self, event: type[Event]) -> str | None:
        """Return the field of the key whose value is the id of an event's stream: there is no route, and the event has
        no field of that name. None if there is none."""
        if self.route is not None:
            return None
        return next((name for name in self.key.names if name not in event.__struct_fields__), None)

    def _key_fields(self) -> KeyFields:
        columns = {each.name: each for each in self.fields}
        where, names = self.model.__name__, self.model.__declared__.key
        for name in names:
            if name not in columns or not columns[name].is_key_part:
                raise DefinitionError(
                    f"{where}: its key `{name}` must be one of its fields, of type UUID, str, int, date or an enum, "
                    "without None"
                )
        if len(set(names)) < len(names) or len(names) > MOST_FIELDS:
            raise DefinitionError(f"{where}: its key must have different fields, {MOST_FIELDS} at most")
        return KeyFields([columns[name] for name in names])

    def _check(self) -> None:
        columns = {each.name: each for each in self.fields}
        where = self.model.__name__
        for reserved in ("id", "position", "row_state"):
            if reserved in columns:
                raise DefinitionError(
                    f"{where}.{reserved}: Headwater gives each row a `{reserved}` of its own; rename it"
                )
        for index in self.model.__declared__.indexes:
            for column in index:
                if column not in columns:
                    raise DefinitionError(f"{where}: it has no field `{column}`, which `indexes` names")
        for name, link in self.links.items():
            for by in link.fields:
                if by not in columns:
                    raise DefinitionError(f"{where}.{name}: `by={by}` must name a field of {where}")
        if self.route is None:
            for event in self.events:
                self._check_key_of(event)

    def _check_key_of(self, event: type[Event]) -> None:
        given = {each.name: each for each in carried_fields_of(event)}
        for part in self.key.fields:
            found = given.get(part.name)
            is_of_stream = part.is_key and part.name not in event.__struct_fields__
            if not is_of_stream and not (found is not None and found.is_key_part and found.matches(part)):
                raise no_key_of(self, event, part)


AnyView: TypeAlias = View[Any]
"""Any view, whatever its rows and its events."""


def no_key_of(view: AnyView, event: type[Event], part: Field) -> DefinitionError:
    """Return the error for an event without the key of its row."""
    kind = (part.enum or part.kind.value).__name__
    return DefinitionError(
        f"{event.__name__} has no field `{part.name}: {kind}` to find its {view.name} row by; give the View a route"
    )


class FoldByEvent:
    """One fold made of several: each event is folded by the function whose annotation names it.

    Raises:
        DefinitionError: there is no function, an annotation is missing, or two name one event.
    """

    def __init__(self, folds: Sequence[Callable[..., Any]]) -> None:
        if not folds:
            raise DefinitionError("A View's list of folds is empty; give it a function")
        owners: dict[type[Event], Callable[..., Any]] = {}
        for fold in folds:
            for event in _events_of(fold):
                if event in owners:
                    raise DefinitionError(
                        f"{event.__name__} is folded by both {name_of(owners[event])} and {name_of(fold)}"
                    )
                owners[event] = fold
        self._of = {event: fold if _takes_key(fold) else _without_key(fold) for event, fold in owners.items()}

    @property
    def events(self) -> tuple[type[Event], ...]:
        return tuple(self._of)

    def with_each(self, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> FoldByEvent:
        """Return a copy with each function changed."""
        made = copy(self)
        made._of = {event: change(fold) for event, fold in self._of.items()}
        return made

    def __call__(self, row: Any, event: Recorded[Any], key: Any) -> Any:
        return self._of[type(event.data)](row, event, key)


def _without_key(fold: Callable[[Any, Recorded[Any]], Any]) -> Callable[[Any, Recorded[Any], Any], Any]:
    @wraps(fold)
    def folded(row: Any, event: Recorded[Any], key: Any) -> Any:
        return fold(row, event)

    return folded


def _takes_key(fold: Callable[..., object]) -> bool:
    """True if a fold has a third parameter, for the key of the row."""
    return isinstance(fold, FoldByEvent) or len([name for name in hints_of(fold) if name != "return"]) > 2


def _events_of(fold: Callable[..., object]) -> tuple[type[Event], ...]:
    if isinstance(fold, FoldByEvent):
        return fold.events
    require_sync(fold)
    taken = [events for name, hint in hints_of(fold).items() if name != "return" and (events := recorded_events(hint))]
    if len(taken) != 1:
        raise DefinitionError(
            f"{name_of(fold)}: its second parameter must be annotated Recorded[...] with the events it folds"
        )
    return taken[0]
