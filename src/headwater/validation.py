"""From foreign input to a command: every rule of its type holds, or `InvalidInput` says which does not and where."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cache
from typing import Any, TypeVar

import msgspec

from headwater.fields import Field, Kind, fields_of
from headwater.messages import Command, Exact, InvalidInput

C = TypeVar("C", bound=Command)

_ANY_DECIMAL = Exact()
_AT = re.compile(r"^(?P<complaint>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.?([^.\[\]]+)")
_UNWRITABLE = re.compile(r"[\x00\ud800-\udfff]")
"""What PostgreSQL's text cannot hold: NUL, and halves of surrogate pairs."""


def command_from(command: type[C], values: Mapping[str, Any]) -> C:
    """Build a command from values by field name.

    Raises:
        InvalidInput: with the path to the first value that breaks a rule.
    """
    try:
        made = msgspec.convert(values, command)
    except msgspec.ValidationError as error:
        raise _invalid(error) from error
    # On what was made, not on what was given: a decimal may come as text or as a whole number.
    for name, many, check in _checks(command):
        value = getattr(made, name)
        if value is None:
            continue
        if many:
            for index, one in enumerate(value):
                if complaint := check(one):
                    raise InvalidInput([name, str(index)], complaint)
        elif complaint := check(value):
            raise InvalidInput([name], complaint)
    return made


def _invalid(error: msgspec.ValidationError) -> InvalidInput:
    found = _AT.match(str(error))
    assert found is not None  # the pattern takes any text
    return InvalidInput(_STEP.findall(found["path"] or ""), found["complaint"])


@cache
def _checks(command: type[Command]) -> tuple[tuple[str, bool, Callable[[Any], str | None]], ...]:
    """The rules that msgspec does not know: the field, whether it is a list, and the check of one value."""
    return tuple(
        (each.name, each.many, _text if each.kind is Kind.TEXT else _decimal(each))
        for each in fields_of(command)
        if each.kind in (Kind.TEXT, Kind.DECIMAL)
    )


def _text(value: Any) -> str | None:
    if isinstance(value, str) and _UNWRITABLE.search(value):
        return "Expected text without NUL characters and lone surrogates"
    return None


def _decimal(each: Field) -> Callable[[Any], str | None]:
    bounds = each.exact or _ANY_DECIMAL

    def check(value: Any) -> str | None:
        return bounds.complaint(value) if isinstance(value, Decimal) else None

    return check
