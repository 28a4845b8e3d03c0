"""Refusals inside Headwater: the exception that carries one where none can be returned, and the check of facts."""

from __future__ import annotations

from functools import cache

from headwater.domain.fields import Field, element_of, fields_of
from headwater.domain.messages import Refusal
from headwater.domain.value import Value
from headwater.errors import HeadwaterError


class CommandRefused(HeadwaterError):
    """Carries a refusal to the dispatcher from below a decision: from a claim, or from the read of a stream. The
    dispatcher returns the refusal; no caller receives this exception."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.code}: {refusal.message}")
        self.refusal = refusal


def missing_fact(refusal: Refusal) -> str | None:
    """Return the name of a fact that is None, or has a None inside, although its annotation has no None there."""
    for field in _facts_of(type(refusal)):  # type: ignore[arg-type]  # mypy takes no class for hashable
        if _is_missing(field, getattr(refusal, field.name)):
            return field.name
    return None


@cache
def _facts_of(struct: type[Refusal | Value]) -> tuple[Field, ...]:
    return fields_of(struct)


def _is_missing(field: Field, value: object) -> bool:
    if value is None:
        return not field.optional
    if field.many:
        return isinstance(value, list | tuple) and any(_is_missing(element_of(field), each) for each in value)
    if not isinstance(value, field.values):
        return False
    facts = _facts_of(type(value))  # type: ignore[arg-type]  # mypy takes no class for hashable
    return any(_is_missing(each, getattr(value, each.name)) for each in facts)
