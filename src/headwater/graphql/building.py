"""Makes Strawberry types, fields and resolvers from declarations of the domain."""

from __future__ import annotations

import enum
import inspect
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

import strawberry
from strawberry.types.enum import StrawberryEnumDefinition

from headwater.domain.fields import Field, Kind
from headwater.graphql.reading import reading
from headwater.graphql.scalars import JSON
from headwater.graphql.scope import Scope

Info = strawberry.Info[Scope, None]

Annotation: TypeAlias = Any
"""A type, a list or a union that Strawberry reads at run time. No static type describes them all."""

Generated: TypeAlias = type[Any]
"""A class that is made at run time."""

_PYTHON: dict[Kind, Annotation] = {
    Kind.TEXT: str,
    Kind.INT: int,
    Kind.FLOAT: float,
    Kind.BOOL: bool,
    Kind.DECIMAL: Decimal,
    Kind.UUID: UUID,
    Kind.TIME: datetime,
    Kind.DATE: date,
    Kind.CLOCK: time,
    Kind.DURATION: timedelta,
    Kind.BYTES: bytes,
    Kind.MAP: JSON,
}


def python_type(each: Field) -> Annotation:
    """Return the annotation of one value of a field, without list and None. Not for nested values."""
    if each.enum is not None:
        return graphql_enum(each.enum)
    return _PYTHON[each.kind]


def graphql_enum(chosen: type[enum.Enum]) -> type[enum.Enum]:
    """Return the enum of the domain, made a GraphQL enum if it is not one yet."""
    if not isinstance(getattr(chosen, "__strawberry_definition__", None), StrawberryEnumDefinition):
        strawberry.enum(chosen, description=inspect.getdoc(chosen))
    return chosen


def new_class(name: str, *bases: type, **members: object) -> Generated:
    """Return an empty class, to annotate and make a Strawberry type later: types may refer to each other."""
    return type(name, bases, {"__module__": __name__, "__annotations__": {}, "__doc__": None, **members})


@dataclass(frozen=True)
class Omittable:
    """An argument that may be left out. The default of the resolver then applies."""

    annotation: Annotation


def resolver(function: Callable[..., Any], returns: Annotation, **arguments: Annotation) -> Callable[..., Any]:
    """Return a resolver with a signature for Strawberry: `info`, then the arguments with their annotations.

    Faults of the database are translated by `reading`.
    """

    def of(name: str, what: Annotation) -> inspect.Parameter:
        kind = inspect.Parameter.KEYWORD_ONLY if name in arguments else inspect.Parameter.POSITIONAL_OR_KEYWORD
        if isinstance(what, Omittable):
            return inspect.Parameter(name, kind, annotation=what.annotation | None, default=strawberry.UNSET)
        return inspect.Parameter(name, kind, annotation=what)

    parameters = [of("root", Any), of("info", Info), *(of(name, what) for name, what in arguments.items())]
    signature = inspect.Signature(parameters, return_annotation=returns)

    resolve = _with_values(function)
    resolve.__signature__ = signature  # type: ignore[attr-defined]  # read by inspect
    resolve.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": returns}
    return resolve


def _with_values(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the function in a new one of the same kind, which can get another signature."""

    async def stream(root: object, info: Info, **values: object) -> AsyncGenerator[object, None]:
        # Closed here and not by garbage collection, so that a subscription leaves its feed as soon as it ends.
        with reading(info.context.serving.database.outage.covers):
            async with aclosing(function(root, info, **values)) as source:
                async for value in source:
                    yield value

    async def later(root: object, info: Info, **values: object) -> object:
        with reading(info.context.serving.database.outage.covers):
            return await function(root, info, **values)

    def now(root: object, info: Info, **values: object) -> object:
        return function(root, info, **values)

    if inspect.isasyncgenfunction(function):
        return stream
    return later if inspect.iscoroutinefunction(function) else now
