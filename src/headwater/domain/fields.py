"""The fields of messages and read models, and the one list of types carried from Python to SQL and GraphQL.

A type that is not on the list stops the start with a sentence that names the class and the field.
"""

from __future__ import annotations

import enum
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSet, Set
from dataclasses import dataclass, field, is_dataclass, replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cache, partial
from inspect import isasyncgenfunction, iscoroutinefunction, isroutine
from typing import Annotated, Any, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec
from typing_extensions import TypeAliasType

from headwater.domain.class_keywords import is_whole
from headwater.domain.messages import Exact, Recorded
from headwater.domain.value import Value, tag_of
from headwater.errors import DefinitionError

E = TypeVar("E")

_META_BOUNDS = ("gt", "ge", "lt", "le", "multiple_of", "pattern", "min_length", "max_length", "tz")


class Kind(enum.Enum):
    """The kind of a value. The member's value is its Python type."""

    TEXT = str
    INT = int
    FLOAT = float
    BOOL = bool
    DECIMAL = Decimal
    UUID = UUID
    TIME = datetime
    DATE = date
    CLOCK = time
    DURATION = timedelta
    BYTES = bytes
    ENUM = enum.Enum
    MAP = dict
    VALUE = Value
    UNION = Union


_KINDS_OF_KEYS = (Kind.UUID, Kind.TEXT, Kind.INT, Kind.DATE, Kind.ENUM)


@dataclass(frozen=True)
class Field:
    """One field of a message, a refusal, a value or a read model.

    name: in Python. kind: of the value, or of each element of a list. optional: the value may be None. many: it is a
    list, or a tuple if `sequence` says so. required: it cannot be left out. enum, exact: the enum of a `Kind.ENUM`, and
    the bounds of a decimal. values: the class of a `Kind.VALUE`, the classes of a `Kind.UNION`. inner: what a
    `Kind.MAP` has under each key. annotation: as it is written, with its bounds. description: of its `Meta`.
    """

    name: str
    kind: Kind
    optional: bool
    many: bool
    required: bool
    enum: type[enum.Enum] | None = None
    exact: Exact | None = None
    values: tuple[type[Value], ...] = ()
    inner: Field | None = None
    sequence: type[list[Any] | tuple[Any, ...]] = list
    annotation: Any = field(default=None, compare=False, repr=False)
    description: str | None = field(default=None, compare=False, repr=False)

    @property
    def is_key(self) -> bool:
        """True if the field can identify a stream by its id: one UUID that is never None."""
        return self.kind is Kind.UUID and self.is_key_part

    @property
    def is_key_part(self) -> bool:
        """True if the field can be the key of a row, or a part of it: one value, never None, with one text for each
        value."""
        return self.kind in _KINDS_OF_KEYS and not self.optional and not self.many

    def matches(self, other: Field) -> bool:
        """True if a value of this field can be a value of the other one: both have the same type, without None."""
        return (self.kind, self.enum, self.many) == (other.kind, other.enum, other.many)

    @property
    def is_nested(self) -> bool:
        """True if there are further values inside it, or inside each element of a list."""
        return self.kind in _NESTED

    @property
    def is_json(self) -> bool:
        """True if its column is one JSON value: of a list, a dict or a nested value."""
        return self.many or self.is_nested

    @property
    def is_ordered(self) -> bool:
        """True if rows can be ordered by the field."""
        return not self.is_json and self.kind not in (Kind.BOOL, Kind.BYTES)


_NESTED = frozenset((Kind.MAP, Kind.VALUE, Kind.UNION))


def fields_of(cls: type) -> tuple[Field, ...]:
    """Return the fields of a command, a refusal, a value or a read model, in their order.

    Raises:
        DefinitionError: an annotation cannot be resolved, or GraphQL and SQL cannot both carry its type.
    """
    return _fields_of(cls, ())


def _fields_of(cls: type, above: tuple[type, ...]) -> tuple[Field, ...]:
    hints = _class_hints(cls)
    return tuple(_field(cls, name, hints[name], required, above) for name, required in _names(cls))


def carried_fields_of(cls: type) -> tuple[Field, ...]:
    """Return the fields whose types Headwater carries to SQL and GraphQL. An event may also have others."""
    hints = _class_hints(cls)
    carried = []
    for name, required in _names(cls):
        try:
            carried.append(_field(cls, name, hints[name], required, ()))
        except DefinitionError:
            continue
    return tuple(carried)


def element_of(each: Field) -> Field:
    """Return the field of one element of a list."""
    listed, _, _ = _unwrap(each.annotation)
    return replace(each, many=False, optional=False, annotation=get_args(listed)[0])


def metas_of(each: Field) -> list[msgspec.Meta]:
    """Return the `Meta` of a field's annotation, the innermost first."""
    return [bound for bound in _unwrap(each.annotation)[2] if isinstance(bound, msgspec.Meta)]


def decimals_of(each: Field, value: Any, place: tuple[str, ...]) -> Iterator[tuple[Field, Decimal, tuple[str, ...]]]:
    """Yield each decimal inside the value of a field, with its own field and its place. place: that of the value."""
    if value is None:
        return
    if each.many:
        if each.kind is Kind.DECIMAL or each.is_nested:
            for index, element in enumerate(value):
                yield from decimals_of(element_of(each), element, (*place, str(index)))
    elif each.kind is Kind.DECIMAL:
        yield each, value, place
    elif each.inner is not None:
        for key, inner in value.items():
            yield from decimals_of(each.inner, inner, (*place, str(key)))
    elif each.values:
        for inside in _known_fields_of(type(value)):  # type: ignore[arg-type]  # mypy takes no class for hashable
            yield from decimals_of(inside, getattr(value, inside.name), (*place, inside.name))


@cache
def _known_fields_of(value: type[Value]) -> tuple[Field, ...]:
    return fields_of(value)


def values_of(fields: Iterable[Field]) -> Iterator[type[Value]]:
    """Yield each class of values in some fields, also those inside other values, each once."""
    seen: set[type[Value]] = set()

    def inside(fields: Iterable[Field]) -> Iterator[type[Value]]:
        for each in fields:
            if each.inner is not None:
                yield from inside((each.inner,))
            for value in each.values:
                if value not in seen:
                    seen.add(value)
                    yield from inside(fields_of(value))
                    yield value

    return inside(fields)


def filterable(fields: Iterable[Field]) -> list[Field]:
    """Return the fields that rows can be filtered by: no lists, no dicts, and no values of several classes."""
    return [each for each in fields if not each.many and each.kind not in (Kind.MAP, Kind.UNION)]


def ordered_paths(fields: Iterable[Field]) -> Iterator[tuple[Field, ...]]:
    """Yield each field that rows can be ordered by, also inside nested values, with the fields that lead to it."""
    for each in fields:
        if each.is_ordered:
            yield (each,)
        elif each.kind is Kind.VALUE and not each.many:
            yield from ((each, *path) for path in ordered_paths(fields_of(each.values[0])))


def _class_hints(cls: type) -> dict[str, object]:
    try:
        return get_type_hints(cls, include_extras=True)
    except Exception as error:
        raise DefinitionError(f"{cls.__name__}: an annotation cannot be resolved: {error}") from error


def _names(cls: type) -> list[tuple[str, bool]]:
    return [(f.name, f.required) for f in msgspec.structs.fields(cls)]


def _field(cls: type, name: str, annotation: object, required: bool, above: tuple[type, ...]) -> Field:
    where = f"{cls.__name__}.{name}"
    return _read(where, name, annotation, required, (*above, cls))


def _read(where: str, name: str, annotation: object, required: bool, above: tuple[type, ...]) -> Field:
    """Return the field of an annotation. where: the class and the field. above: the classes that it is inside."""
    inner, optional, bounds = _unwrap(annotation)
    described = next(
        (bound.description for bound in bounds if isinstance(bound, msgspec.Meta) and bound.description), None
    )
    sequence = _sequence(inner)
    if sequence is not None:
        if any(isinstance(bound, Exact) for bound in bounds):
            raise DefinitionError(
                f"{where}: Exact bounds a Decimal, not a list of them; write list[Annotated[Decimal, ...]]"
            )
        inner, inner_optional, bounds = _unwrap(get_args(inner)[0])
        if inner_optional:
            raise DefinitionError(f"{where}: the values of a list cannot be None; leave `| None` out")
    kind = _kind(inner)
    if kind is None:
        raise DefinitionError(
            f"{where}: {_spell(annotation)} is a type that GraphQL and SQL cannot both carry; {_instead(inner)}"
        )
    exact = next((bound for bound in bounds if isinstance(bound, Exact)), None)
    if exact is not None and kind is not Kind.DECIMAL:
        raise DefinitionError(f"{where}: Exact bounds a Decimal, not {_spell(inner)}")
    if kind is Kind.DECIMAL and any(map(_bounds_something, bounds)):
        raise DefinitionError(
            f"{where}: msgspec's Meta cannot bound a Decimal; use headwater.Exact, as in"
            " Annotated[Decimal, Exact(above=0, places=2)]"
        )
    chosen = inner if isinstance(inner, type) and issubclass(inner, enum.Enum) else None
    if chosen is not None and not list(chosen):
        raise DefinitionError(f"{where}: the enum {chosen.__name__} has no members; add one")
    values = union_arms(inner) if kind in (Kind.VALUE, Kind.UNION) else ()
    for value in values:
        _require_value(where, value, above, tagged=kind is Kind.UNION)
    return Field(
        name,
        kind,
        optional,
        sequence is not None,
        required,
        chosen,
        exact,
        values,
        _read(f"{where}[...]", "", get_args(inner)[1], True, above) if kind is Kind.MAP else None,
        sequence or list,
        annotation,
        described,
    )


def _require_value(where: str, value: type[Value], above: tuple[type, ...], *, tagged: bool) -> None:
    if value in above:
        raise DefinitionError(
            f"{where}: {value.__name__} contains itself; events and states can, commands, refusals and rows cannot: "
            "use a list of values that name each other by an id"
        )
    if tagged and tag_of(value) is None:
        raise DefinitionError(
            f"{where}: {value.__name__} is one of several values and needs a tag: class {value.__name__}(Value, "
            f'tag="{value.__name__.lower()}")'
        )
    _fields_of(value, above)


def _unwrap(annotation: object) -> tuple[object, bool, tuple[object, ...]]:
    """Return the type inside Annotated, Optional and names of types, True if it was optional, and the bounds."""
    optional = False
    bounds: tuple[object, ...] = ()
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation, *inner_bounds = get_args(annotation)
            bounds = (*inner_bounds, *bounds)
        elif origin in (Union, types.UnionType) and type(None) in get_args(annotation):
            rest = [arm for arm in get_args(annotation) if arm is not type(None)]
            annotation, optional = (rest[0] if len(rest) == 1 else Union[tuple(rest)]), True  # noqa: UP007 - at run time
        elif isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif isinstance(annotation, TypeAliasType):
            annotation = annotation.__value__
        else:
            return annotation, optional, bounds


def _bounds_something(bound: object) -> bool:
    """True if it is a `Meta` with a bound; it may only have a description."""
    return isinstance(bound, msgspec.Meta) and any(getattr(bound, name) is not None for name in _META_BOUNDS)


def _sequence(annotation: object) -> type[list[Any] | tuple[Any, ...]] | None:
    """Return list for `list[X]`, tuple for `tuple[X, ...]`, else None."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is list or (origin is tuple and len(args) == 2 and args[1] is ...):
        return origin
    return None


def _kind(annotation: object) -> Kind | None:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        if issubclass(annotation, enum.Enum):
            return Kind.ENUM if _has_plain_members(annotation) else None
        if issubclass(annotation, Value):
            return None if annotation is Value else Kind.VALUE
        return next((kind for kind in _SCALARS if annotation is kind.value), None)
    if get_origin(annotation) is dict:
        return Kind.MAP if _unwrap(get_args(annotation)[0])[0] is str else None
    arms = union_arms(annotation)
    return Kind.UNION if len(arms) > 1 and all(_kind(arm) is Kind.VALUE for arm in arms) else None


_SCALARS = tuple(kind for kind in Kind if kind not in (*_NESTED, Kind.ENUM))


def _has_plain_members(chosen: type[enum.Enum]) -> bool:
    """True if all members are text, or all are whole numbers of 64 bits: PostgreSQL stores the members' values."""
    values = [member.value for member in chosen]
    if issubclass(chosen, enum.Flag):
        return False
    if all(isinstance(value, str) for value in values):
        return True
    return all(is_whole(value) and -(2**63) <= value < 2**63 for value in values)


def _spell(annotation: object) -> str:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation.__name__
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(annotation))


_USE = (
    "use one of str, int, float, bool, Decimal, UUID, datetime, date, time, timedelta, bytes, an Enum of strings or of "
    "whole numbers, a Value, a dict[str, ...] of these, or a list of these"
)


def _instead(annotation: object) -> str:
    """Return what to use in place of a type that cannot be carried."""
    origin, args = get_origin(annotation) or annotation, get_args(annotation)
    if origin in (set, frozenset, Set, MutableSet):
        return "use a list, or a tuple[..., ...]"
    if origin is list or (origin is tuple and len(args) == 2 and args[1] is ...):
        return "put the inner list into a Value" if args else "say of what: list[str]"
    if origin is tuple:
        return "use a Value with a field for each part"
    if origin is dict:
        return "use dict[str, ...], as JSON has only text as keys" if args else "say of what: dict[str, str]"
    if origin is Literal:
        return "use an Enum"
    if origin in (Union, types.UnionType):
        return 'of several types only Values can be one field, each with a tag: class Card(Value, tag="card")'
    if annotation in (Any, object):
        return "name a type, such as dict[str, str] or a Value"
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return "use an Enum whose members are all strings, or all whole numbers of 64 bits"
    if isinstance(origin, type) and (
        issubclass(origin, msgspec.Struct | Mapping) or is_dataclass(origin) or hasattr(origin, "__annotations__")
    ):
        return f"make it a Value: class {origin.__name__}(Value)"
    return _USE


def require_sync(*functions: Callable[..., object] | None) -> None:
    """Raise DefinitionError if one of the functions is async: its result would be a coroutine that nothing awaits."""
    for function in functions:
        called = function
        if callable(function) and not (isroutine(function) or isinstance(function, partial)):
            called = type(function).__call__
        if iscoroutinefunction(called) or isasyncgenfunction(called):
            raise DefinitionError(f"{name_of(function)} must be a plain function, not an async one")


def name_of(function: object) -> str:
    """Return a function's module and qualified name, as error messages show it."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def key_from(function: Callable[[E], UUID], event: E) -> UUID:
    """Return the key that a user's function finds for an event.

    Raises:
        TypeError: it returned something else than a UUID.
    """
    key = function(event)
    if not isinstance(key, UUID):
        raise TypeError(f"{name_of(function)} returned {key!r}, not a UUID")
    return key


def hints_of(function: Callable[..., object]) -> dict[str, object]:
    """Return the annotations of a function's parameters and its `return`, in their order.

    Raises:
        DefinitionError: one cannot be resolved.
    """
    try:
        return get_type_hints(function)
    except Exception as error:
        raise DefinitionError(f"{name_of(function)}: an annotation cannot be resolved: {error}") from error


def recorded_events(annotation: object) -> tuple[Any, ...]:
    """Return the events of `Recorded[A | B]`; an empty tuple for another annotation."""
    return union_arms(get_args(annotation)[0]) if get_origin(annotation) is Recorded else ()


def union_arms(annotation: object) -> tuple[Any, ...]:
    """Return the classes of `A | B`, or the one class. It may have a name: `type AB = A | B`."""
    annotation = getattr(annotation, "__value__", annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(arm for inner in get_args(annotation) for arm in union_arms(inner))
    return (annotation,)
