"""From foreign input to a command: every rule of its type holds, or `InvalidInput` says which does not and where."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cache
from typing import Any, TypeVar

import msgspec

from headwater.domain.fields import Field, Kind, fields_of
from headwater.domain.messages import Command, Exact, InvalidInput

C = TypeVar("C", bound=Command)

_ANY_DECIMAL = Exact()
_AT = re.compile(r"^(?P<complaint>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.?([^.\[\]]+)")
_LENGTH = re.compile(r"Expected `(?P<type>str|array)` of length (?P<sign>>=|<=) (?P<number>\d+)")
_BOUND = re.compile(r"Expected `(?:int|float)` (?P<sign>[<>]=?) (?P<number>\S+)")
_PATTERN = re.compile(r"Expected `str` matching regex (?P<pattern>'.*'|\".*\")", re.DOTALL)
_TYPES = re.compile(r"`(\w+(?: \| \w+)*)`")
_THAN = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
_NAMED = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "decimal": "a decimal",
    "bool": "true or false",
    "null": "nothing",
    "array": "a list",
    "object": "an object",
    "uuid": "a UUID",
    "datetime": "a time",
    "date": "a date",
}
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
    return InvalidInput(_STEP.findall(found["path"] or ""), _in_words(found["complaint"]))


def _in_words(complaint: str) -> str:
    """A complaint of msgspec's as people say it who have never seen Python: it reaches them on their screens."""
    if found := _LENGTH.fullmatch(complaint):
        number, things = found["number"], "character" if found["type"] == "str" else "value"
        return f"Expected {_THAN[found['sign']]} {number} {things}{'' if number == '1' else 's'}"
    if found := _BOUND.fullmatch(complaint):
        return f"Expected {_THAN[found['sign']]} {found['number']}"
    if found := _PATTERN.fullmatch(complaint):
        # As the declaration has it: msgspec quotes it as Python would.
        return f"Expected text that matches {ast.literal_eval(found['pattern'])}"
    if complaint.startswith("Expected `"):
        return _TYPES.sub(
            lambda found: " or ".join(_NAMED.get(each, each) for each in found[1].split(" | ")), complaint
        )
    return complaint


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
