"""Commands from the input of clients. `InvalidInput` names the first rule that a value breaks, and its place."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec

from headwater.domain.fields import Field, Kind, fields_of
from headwater.domain.messages import Command, Exact, InvalidInput
from headwater.domain.value_rules import broken_rule

C = TypeVar("C", bound=Command)

_ANY_DECIMAL = Exact()
_fields_of = cache(fields_of)
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


def command_from(command: type[C], values: Mapping[str, object]) -> C | InvalidInput:
    """Return the command with these values, by field name; InvalidInput if a value breaks a rule.

    The `path` of InvalidInput leads to the first such value.
    """
    try:
        made = msgspec.convert(values, command)
    except msgspec.ValidationError as error:
        return _invalid(error)
    # On the converted values, because the input of a decimal may be text or a whole number.
    for each in _fields_of(command):  # type: ignore[arg-type]  # mypy takes no class for hashable
        value = getattr(made, each.name)
        if broken := broken_rule(each, value):
            return InvalidInput(path=list(broken[0]), complaint=broken[1])
        if each.kind is Kind.DECIMAL and value is not None and (invalid := _out_of_bounds(each, value)) is not None:
            return invalid
    return made


def _out_of_bounds(field: Field, value: Any) -> InvalidInput | None:
    bounds = field.exact or _ANY_DECIMAL
    for index, number in enumerate(value if field.many else [value]):
        if complaint := bounds.complaint(number):
            return InvalidInput(path=[field.name, str(index)] if field.many else [field.name], complaint=complaint)
    return None


def _invalid(error: msgspec.ValidationError) -> InvalidInput:
    found = _AT.match(str(error))
    assert found is not None  # the pattern matches any text
    return InvalidInput(path=_STEP.findall(found["path"] or ""), complaint=_in_words(found["complaint"]))


def _in_words(complaint: str) -> str:
    """Return a complaint of msgspec without the names of Python types, because an app may show it to its users."""
    if found := _LENGTH.fullmatch(complaint):
        number, things = found["number"], "character" if found["type"] == "str" else "value"
        return f"Expected {_THAN[found['sign']]} {number} {things}{'' if number == '1' else 's'}"
    if found := _BOUND.fullmatch(complaint):
        return f"Expected {_THAN[found['sign']]} {found['number']}"
    if found := _PATTERN.fullmatch(complaint):
        # msgspec shows the repr of the pattern; the user should see the pattern.
        return f"Expected text that matches {ast.literal_eval(found['pattern'])}"
    if complaint.startswith("Expected `"):
        return _TYPES.sub(
            lambda found: " or ".join(_NAMED.get(each, each) for each in found[1].split(" | ")), complaint
        )
    return complaint
