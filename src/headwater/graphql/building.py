"""Making Strawberry types and fields from what the domain declares, in place of writing them by hand for each."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import strawberry
from strawberry.types.enum import StrawberryEnumDefinition

from headwater.domain.fields import Field, Kind
from headwater.graphql.reading import reading
from headwater.graphql.scope import Scope

Info = strawberry.Info[Scope, None]

_PYTHON: dict[Kind, Any] = {
    Kind.TEXT: str,
    Kind.INT: int,
    Kind.FLOAT: float,
    Kind.BOOL: bool,
    Kind.DECIMAL: Decimal,
    Kind.UUID: UUID,
    Kind.TIME: datetime,
    Kind.DATE: date,
}


def python_type(each: Field) -> Any:
    """The annotation of one value of a field, without list and None."""
    if each.enum is not None:
        return graphql_enum(each.enum)
    return _PYTHON[each.kind]


def annotation(each: Field) -> Any:
    """The annotation of a field as Strawberry reads it."""
    inner = python_type(each)
    whole = list[inner] if each.many else inner  # type: ignore[valid-type]  # known at run time
    return whole | None if each.optional else whole


def graphql_enum(chosen: type[enum.Enum]) -> Any:
    """The domain's enum as a GraphQL one, made once."""
    if not isinstance(getattr(chosen, "__strawberry_definition__", None), StrawberryEnumDefinition):
        strawberry.enum(chosen, description=inspect.getdoc(chosen))
    return chosen


def new_class(name: str, *bases: type, doc: str | None = None, **members: Any) -> type[Any]:
    """An empty class to be annotated and then made a Strawberry type: types that refer to each other exist first."""
    return type(name, bases, {"__module__": __name__, "__annotations__": {}, "__doc__": doc, **members})


@dataclass(frozen=True)
class Omittable:
    """An argument that may be left out: the resolver's own default then holds."""

    annotation: Any


def resolver(function: Callable[..., Any], returns: Any, **arguments: Any) -> Callable[..., Any]:
    """A resolver with a signature that Strawberry can read: `info`, then the arguments with their annotations. What the
    database does wrong reaches the client as `reading` has it."""

    def of(name: str, what: Any) -> inspect.Parameter:
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
    """A function of the same kind of its own, to be given another signature."""

    async def stream(root: Any, info: Info, **values: Any) -> Any:
        # Closed with this one, not when it is collected: a subscription that ends leaves its feed at once.
        with reading(info.context.serving.is_logged):
            async with aclosing(function(root, info, **values)) as source:
                async for value in source:
                    yield value

    async def later(root: Any, info: Info, **values: Any) -> Any:
        with reading(info.context.serving.is_logged):
            return await function(root, info, **values)

    def now(root: Any, info: Info, **values: Any) -> Any:
        return function(root, info, **values)

    if inspect.isasyncgenfunction(function):
        return stream
    return later if inspect.iscoroutinefunction(function) else now
