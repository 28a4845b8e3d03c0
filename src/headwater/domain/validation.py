"""Commands from the input of clients. Every value that breaks a rule is found, however deep it is, with its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import NamedTuple, TypeVar

import msgspec

from headwater.domain.class_keywords import did_you_mean
from headwater.domain.fields import Field, Kind, decimals_of, element_of, fields_of, metas_of
from headwater.domain.messages import Command, Exact, InvalidField, InvalidInput
from headwater.domain.value import TAG_FIELD, Value, tag_of
from headwater.domain.value_rules import Broken, Rule, broken_rules, rule_of

C = TypeVar("C", bound=Command)

LISTED = 100
"""The most complaints of one `InvalidInput`."""

_ANY_DECIMAL = Exact()
_fields_of = cache(fields_of)
_AT = re.compile(r"^(?P<complaint>.*?)(?: - at `(?:key` in `)?\$(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.?([^.\[\]]+)")
_LENGTH = re.compile(r"Expected `(?P<type>str|bytes|array|object)` of length (?P<sign>>=|<=) (?P<number>\d+)")
_BOUND = re.compile(r"Expected `(?:int|float)` (?P<sign>[<>]=?) (?P<number>\S+)")
_MULTIPLE = re.compile(r"Expected `(?:int|float)` that's a multiple of (?P<number>\S+)")
_TYPES = re.compile(r"`(\w+(?: \| \w+)*)`")
_THAN = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
_THINGS = {"str": "character", "bytes": "byte", "array": "value", "object": "entry"}
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
    "time": "a time of day",
    "duration": "a duration",
    "bytes": "bytes in base64",
}
_INVALID = {
    "Invalid RFC3339 encoded datetime": 'Expected a time such as "2026-01-31T12:00:00Z"',
    "Invalid RFC3339 encoded date": 'Expected a date such as "2026-01-31"',
    "Invalid RFC3339 encoded time": 'Expected a time of day such as "12:00:00"',
    "Invalid ISO8601 duration": 'Expected a duration such as "PT90S"',
    "Invalid base64 encoded string": "Expected bytes in base64",
    "Invalid decimal string": 'Expected a decimal such as "12.50"',
    "Invalid UUID": "Expected a UUID",
    "Expected `datetime` with a timezone component": "Expected a time with a time zone",
    "Expected `datetime` with no timezone component": "Expected a time without a time zone",
}


def command_from(command: type[C], values: Mapping[str, object]) -> C | InvalidInput:
    """Return the command with these values, by field name; InvalidInput if values break a rule.

    Nested values are mappings, too. InvalidInput names every value that breaks a rule, at most `LISTED`.
    """
    try:
        made = msgspec.convert(values, command)
    except msgspec.ValidationError as error:
        broken = list(islice(_in_struct(command, values, ()), LISTED))
        return _invalid(broken or [_told(error, ())])
    # On the converted values, because the input of a decimal may be text or a whole number.
    if not _checks_of(command).are_kept(made, values):  # type: ignore[arg-type]  # mypy takes no class for hashable
        broken = list(islice(_in_made(command, made, values), LISTED))
        if broken:
            return _invalid(broken)
    return made


class _Checks(NamedTuple):
    """The quick look at a command that msgspec has accepted: nearly every one is right.

    names: of its fields. rules, bounds: of the fields that hold one value. nested: there are values inside others.
    """

    names: frozenset[str]
    rules: Sequence[tuple[str, Rule]]
    bounds: Sequence[tuple[str, Exact]]
    nested: bool

    def are_kept(self, made: Command, values: Mapping[str, object]) -> bool:
        """True if the command keeps every rule; False if that needs a closer look."""
        if self.nested or not self.names.issuperset(values):
            return False
        for name, rule in self.rules:
            if rule(getattr(made, name)) is not None:
                return False
        for name, exact in self.bounds:
            value = getattr(made, name)
            if value is not None and exact.complaint(value) is not None:
                return False
        return True


@cache
def _checks_of(command: type[Command]) -> _Checks:
    fields = _fields_of(command)  # type: ignore[arg-type]  # mypy takes no class for hashable
    one = [each for each in fields if not each.is_json]
    return _Checks(
        frozenset(each.name for each in fields),
        [(each.name, rule) for each in one if (rule := rule_of(each)) is not None],
        [(each.name, each.exact or _ANY_DECIMAL) for each in one if each.kind is Kind.DECIMAL],
        len(one) < len(fields),
    )


def _invalid(broken: list[Broken]) -> InvalidInput:
    (place, complaint), *others = broken
    return InvalidInput(
        path=list(place),
        complaint=complaint,
        others=tuple(InvalidField(path=list(path), message=message) for path, message in others),
    )


def _in_made(command: type[Command], made: Command, values: Mapping[str, object]) -> Iterator[Broken]:
    """Yield what is wrong with values that msgspec has accepted."""
    yield from _unknown(command, values, ())
    yield from broken_rules(made)
    for each in _fields_of(command):  # type: ignore[arg-type]  # mypy takes no class for hashable
        yield from _out_of_bounds(each, getattr(made, each.name), (each.name,))


def _out_of_bounds(field: Field, value: object, place: tuple[str, ...]) -> Iterator[Broken]:
    """Yield the decimals inside the value of a field that break their `Exact`."""
    for each, number, at in decimals_of(field, value, place):
        if complaint := (each.exact or _ANY_DECIMAL).complaint(number):
            yield at, complaint


# ------------------------------------------------------------------------------------------ values that msgspec refused


def _in_struct(cls: type, values: Mapping[str, object], place: tuple[str, ...]) -> Iterator[Broken]:
    """Yield what is wrong with the values of a struct, by field name, before they are converted."""
    yield from _unknown(cls, values, place, deep=False)
    for each in _fields_of(cls):
        if each.name in values:
            yield from _in_field(each, values[each.name], (*place, each.name))
        elif each.required:
            yield (*place, each.name), "Expected a value, got none"


def _in_field(field: Field, value: object, place: tuple[str, ...]) -> Iterator[Broken]:
    try:
        made = msgspec.convert(value, field.annotation)
    except msgspec.ValidationError as error:
        inside = list(_inside(field, value, place))
        if not inside or _LENGTH.fullmatch(str(error)):  # an error inside has a path behind it
            yield _told(error, place, field)
        yield from inside
    else:
        yield from broken_rules(made, place)
        yield from _out_of_bounds(field, made, place)


def _inside(field: Field, value: object, place: tuple[str, ...]) -> Iterator[Broken]:
    """Yield what is wrong inside a list, a dict or a nested value."""
    if field.many:
        if isinstance(value, list | tuple):
            for index, element in enumerate(value):
                yield from _in_field(element_of(field), element, (*place, str(index)))
    elif isinstance(value, Mapping):
        if field.inner is not None:
            for key, inner in value.items():
                yield from _in_field(field.inner, inner, (*place, str(key)))
        elif (chosen := chosen_value(field, value)) is not None:
            yield from _in_struct(chosen, value, place)


def chosen_value(field: Field, value: Mapping[str, object]) -> type[Value] | None:
    """Return the class of a nested value, of several by its tag; None if the tag is of none of them."""
    if field.kind is Kind.VALUE:
        return field.values[0]
    return next((each for each in field.values if tag_of(each) == value.get(TAG_FIELD)), None)


def _unknown(cls: type, values: Mapping[str, object], place: tuple[str, ...], *, deep: bool = True) -> Iterator[Broken]:
    """Yield the names that no field has. msgspec ignores them. deep: also those inside nested values."""
    fields = {each.name: each for each in _fields_of(cls)}
    for name, value in values.items():
        if name in fields:
            if deep:
                yield from _unknown_inside(fields[name], value, (*place, name))
        elif name != TAG_FIELD or not issubclass(cls, Value):
            yield (*place, name), f"There is no field of this name{did_you_mean(name, fields)}"


def _unknown_inside(field: Field, value: object, place: tuple[str, ...]) -> Iterator[Broken]:
    if field.many and isinstance(value, list | tuple) and field.is_nested:
        for index, element in enumerate(value):
            yield from _unknown_inside(element_of(field), element, (*place, str(index)))
    elif isinstance(value, Mapping):
        if field.inner is not None:
            for key, inner in value.items():
                yield from _unknown_inside(field.inner, inner, (*place, str(key)))
        elif (chosen := chosen_value(field, value)) is not None:
            yield from _unknown(chosen, value, place)


def _told(error: msgspec.ValidationError, place: tuple[str, ...], field: Field | None = None) -> Broken:
    """Return the place and the complaint of an error of msgspec. place: of the value that it is about."""
    found = _AT.match(str(error))
    assert found is not None  # the pattern matches any text
    return (*place, *_STEP.findall(found["path"] or "")), _in_words(found["complaint"], field)


def _in_words(complaint: str, field: Field | None) -> str:
    """Return a complaint of msgspec without the names of Python types and without a pattern, because an app may show
    it to its users."""
    if complaint in _INVALID:
        return _INVALID[complaint]
    if found := _LENGTH.fullmatch(complaint):
        number, things = found["number"], _THINGS[found["type"]]
        plural = things if number == "1" else "entries" if things == "entry" else f"{things}s"
        return f"Expected {_THAN[found['sign']]} {number} {plural}"
    if found := _BOUND.fullmatch(complaint):
        return f"Expected {_THAN[found['sign']]} {found['number']}"
    if found := _MULTIPLE.fullmatch(complaint):
        return f"Expected a multiple of {found['number']}"
    if complaint.startswith("Expected `str` matching regex "):
        return f"Expected text of another form{_example(field)}"
    if complaint.startswith("Expected `"):
        return _TYPES.sub(
            lambda found: " or ".join(_NAMED.get(each, each) for each in found[1].split(" | ")), complaint
        )
    return complaint


def _example(field: Field | None) -> str:
    """Return `, such as EUR` from the examples that the field's `Meta` has; empty if it has none."""
    examples = [] if field is None else [each for meta in metas_of(field) for each in meta.examples or ()]
    return f", such as {examples[0]}" if examples else ""
