"""The fields of messages and read models, and the one list of types carried from Python to SQL and GraphQL.

A type that is not on the list stops the start with a sentence that names the class and the field.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from inspect import isasyncgenfunction, iscoroutinefunction, isroutine
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec

from headwater.domain.messages import Exact, Recorded
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
    ENUM = enum.Enum


@dataclass(frozen=True)
class Field:
    """One field of a message, a refusal or a read model.

    name: in Python. kind: of the value, or of each element of a list. optional: the value may be None. many: it is a
    list. required: it cannot be left out. enum, exact: the enum of a `Kind.ENUM`, and the bounds of a decimal.
    """

    name: str
    kind: Kind
    optional: bool
    many: bool
    required: bool
    enum: type[enum.Enum] | None = None
    exact: Exact | None = None

    @property
    def is_key(self) -> bool:
        """True if the field can identify a stream or a row: one UUID that is never None."""
        return self.kind is Kind.UUID and not self.optional and not self.many

    @property
    def is_ordered(self) -> bool:
        """True if rows can be ordered by the field."""
        return not self.many and self.kind is not Kind.BOOL


def fields_of(cls: type) -> tuple[Field, ...]:
    """Return the fields of a struct, in their order.

    Raises:
        DefinitionError: an annotation cannot be resolved, or Headwater does not carry its type.
    """
    hints = _class_hints(cls)
    return tuple(_field(cls, name, hints[name], required) for name, required in _names(cls))


def carried_fields_of(cls: type) -> tuple[Field, ...]:
    """Return the fields whose types Headwater carries to SQL and GraphQL; fields of other types are left out."""
    hints = _class_hints(cls)
    carried = []
    for name, required in _names(cls):
        try:
            carried.append(_field(cls, name, hints[name], required))
        except DefinitionError:
            continue
    return tuple(carried)


def _class_hints(cls: type) -> dict[str, object]:
    try:
        return get_type_hints(cls, include_extras=True)
    except Exception as error:
        raise DefinitionError(f"{cls.__name__}: an annotation cannot be resolved: {error}") from error


def _names(cls: type) -> list[tuple[str, bool]]:
    return [(f.name, f.required) for f in msgspec.structs.fields(cls)]


def _field(cls: type, name: str, annotation: object, required: bool) -> Field:
    inner, optional, bounds = _unwrap(annotation)
    many = get_origin(inner) is list
    if many:
        if any(isinstance(bound, Exact) for bound in bounds):
            raise DefinitionError(
                f"{cls.__name__}.{name}: Exact bounds a Decimal, not a list of them; write"
                " list[Annotated[Decimal, ...]]"
            )
        inner, inner_optional, bounds = _unwrap(*get_args(inner))
        if inner_optional:
            raise DefinitionError(f"{cls.__name__}.{name}: the values of a list cannot be None; leave `| None` out")
    kind = _kind(inner)
    if kind is None:
        raise DefinitionError(
            f"{cls.__name__}.{name}: {_spell(annotation)} is a type that GraphQL and SQL cannot both carry; use one of "
            "str, int, float, bool, Decimal, UUID, datetime, date, an Enum of strings, or a list of these"
        )
    exact = next((bound for bound in bounds if isinstance(bound, Exact)), None)
    if exact is not None and kind is not Kind.DECIMAL:
        raise DefinitionError(f"{cls.__name__}.{name}: Exact bounds a Decimal, not {_spell(inner)}")
    if kind is Kind.DECIMAL and any(map(_bounds_something, bounds)):
        raise DefinitionError(
            f"{cls.__name__}.{name}: msgspec's Meta cannot bound a Decimal; use headwater.Exact, as in"
            " Annotated[Decimal, Exact(above=0, places=2)]"
        )
    chosen = inner if isinstance(inner, type) and issubclass(inner, enum.Enum) else None
    if chosen is not None and not list(chosen):
        raise DefinitionError(f"{cls.__name__}.{name}: the enum {chosen.__name__} has no members; add one")
    return Field(name, kind, optional, many, required, chosen, exact)


def _unwrap(annotation: object) -> tuple[object, bool, tuple[object, ...]]:
    """Return the type inside Annotated and Optional, True if it was optional, and the bounds of Annotated."""
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
        else:
            return annotation, optional, bounds


def _bounds_something(bound: object) -> bool:
    """True if it is a `Meta` with a bound; it may only have a description."""
    return isinstance(bound, msgspec.Meta) and any(getattr(bound, name) is not None for name in _META_BOUNDS)


def _kind(annotation: object) -> Kind | None:
    if isinstance(annotation, type):
        if issubclass(annotation, enum.Enum):
            return Kind.ENUM if all(isinstance(member.value, str) for member in annotation) else None
        for kind in Kind:
            if annotation is kind.value:
                return kind
    return None


def _spell(annotation: object) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


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
