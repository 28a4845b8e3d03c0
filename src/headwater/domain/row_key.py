"""The key of a read model: the field or the fields that identify a row.

A key is held in its stored form, as its columns have it: a UUID, a text, an int or a date, of an enum its value, and of
several fields a tuple of these. So two keys are equal if they name the same row, whether a route, a stored row, a
tombstone or a client gave them. `projections.key_columns` has the SQL of keys.

As text, a key is the texts of its parts, joined by colons: `2026-01-31:EUR`. A colon, an @ or a % within a part is
written as %3A, %40 or %25, so that no two keys have one text, and that a text may stand before an @.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import date, datetime
from enum import Enum
from hashlib import sha256
from operator import attrgetter, itemgetter
from typing import Any, TypeAlias, cast
from uuid import UUID

from headwater.domain.fields import Field, Kind
from headwater.domain.value_rules import rule_of, shortened

KeyPart: TypeAlias = UUID | str | int | date
RowKey: TypeAlias = KeyPart | tuple[KeyPart, ...]
"""The stored form of a key."""

KeyValue: TypeAlias = UUID | str | int | date | Enum
"""A part of a key as a Python value."""

LARGEST_KEY = 2000
"""The most bytes of a key's text. PostgreSQL's index holds 2,704, with the name of the projection and a position."""

MOST_FIELDS = 8
"""The most fields of a key. PostgreSQL's index could hold more, but the text of a long key would not fit."""

_SURELY_FITS = 400
_LONG_PART = 48
_KEPT = 32
"""Characters: of texts that surely fit; of a part that is not cut; and of what is left of one that is cut."""

_ESCAPES = str.maketrans({"%": "%25", ":": "%3A", "@": "%40"})
_ESCAPED = re.compile(r"%(25|3A|40)")


class KeyFields:
    """The key of one read model.

    names: of the fields. number: from a key to a value that is equal and ordered as the key is, and hashed fast:
    hashing a UUID is slow. of_row: from a stored row to its key. of_model: from an instance of the read model to its
    key.
    """

    number: Callable[[Any], Any]
    of_row: Callable[[Any], RowKey]
    of_model: Callable[[Any], RowKey]

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        self.names = tuple(each.name for each in fields)
        self.is_uuid = len(fields) == 1 and fields[0].kind is Kind.UUID
        self.number = attrgetter("int") if self.is_uuid else _itself
        self.of_row = itemgetter(*self.names)
        self._takers = [_taker(each) for each in fields]
        self._plain = all(each.kind in (Kind.UUID, Kind.TEXT, Kind.INT) for each in fields)
        self._get = attrgetter(*self.names)
        self.of_model = cast("Callable[[Any], RowKey]", self._get) if self._plain else self._of_model

    def is_of(self, stream: KeyFields) -> bool:
        """True if this is the key of the streams of a decider: it has the same field."""
        return self.names == stream.names and self.fields[0].matches(stream.fields[0])

    # ----------------------------------------------------------------------------------------------- from Python values

    def take(self, given: object) -> RowKey:
        """Return the key that a route or a client gave as Python values: of several fields as a tuple.

        A key that is too large for an index is cut, and gets a digest at its end. It then is the key of no row, because
        no row can have it; but an event that is routed to it can be parked under it.

        Raises:
            TypeError: a part has another type than its field.
            ValueError: a part cannot be stored.
        """
        if len(self._takers) == 1:
            key: RowKey = self._takers[0](given)
            return key if not isinstance(key, str) or len(key) <= _SURELY_FITS else self._cut(key)
        if not isinstance(given, tuple) or len(given) != len(self._takers):
            raise TypeError(f"{shortened(given)} is no tuple of ({', '.join(self.names)})")
        key = tuple([taken(part) for taken, part in zip(self._takers, given, strict=True)])
        size = sum(len(part) for part in key if isinstance(part, str))
        return key if size <= _SURELY_FITS else self._cut(key)

    def take_named(self, values: Mapping[str, object]) -> RowKey:
        """Return the key of which each part is given under the name of its field. Raises as `take` does."""
        parts = tuple(values[name] for name in self.names)
        return self.take(parts if len(parts) > 1 else parts[0])

    def values(self, key: RowKey) -> Any:
        """Return a key as Python values: an enum's value as the member."""
        if self._plain:
            return key
        parts = [_member(each, part) for each, part in zip(self.fields, self.parts(key), strict=True)]
        return tuple(parts) if len(parts) > 1 else parts[0]

    def parts(self, key: RowKey) -> tuple[KeyPart, ...]:
        """Return the parts of a key, one for each field."""
        return key if isinstance(key, tuple) else (key,)

    def key_of(self, number: Any) -> RowKey:
        """Return the key of a number."""
        return UUID(int=number) if self.is_uuid else number

    def _of_model(self, model: object) -> RowKey:
        values = self._get(model)
        if len(self.fields) == 1:
            return _stored(values)
        return tuple(map(_stored, values))

    def _cut(self, key: RowKey) -> RowKey:
        if len(self.text(key).encode()) <= LARGEST_KEY:
            return key
        parts = [
            f"{part[:_KEPT]}…{sha256(part.encode()).hexdigest()}"
            if isinstance(part, str) and len(part) > _LONG_PART
            else part
            for part in self.parts(key)
        ]
        return tuple(parts) if isinstance(key, tuple) else parts[0]

    # ------------------------------------------------------------------------------------------------------------- text

    def text(self, key: RowKey) -> str:
        """Return the text of a key."""
        if isinstance(key, tuple):
            return ":".join(map(text_of, key))
        return text_of(key)

    def read(self, text: str) -> RowKey:
        """Return the key of a text that `text` returned."""
        parts = text.split(":") if len(self.fields) > 1 else [text]
        read = [_part_of(each, _unescaped(part)) for each, part in zip(self.fields, parts, strict=True)]
        return tuple(read) if len(read) > 1 else read[0]

    def parse(self, text: str) -> RowKey:
        """Return the key of a text that a client gave.

        Raises:
            ValueError: `text` returns it for no key.
        """
        key = self.take(self.values(self.read(text)))
        if self.text(key) != text:
            raise ValueError(f"{shortened(text)} is not the text of a key of ({', '.join(self.names)})")
        return key


def _itself(key: Hashable) -> Hashable:
    return key


def _stored(value: Any) -> KeyPart:
    """Return the stored form of a part of a row's key."""
    if isinstance(value, Enum):
        return cast("KeyPart", value.value)
    return value.date() if isinstance(value, datetime) else cast("KeyPart", value)


def _member(field: Field, part: KeyPart) -> Any:
    return part if field.enum is None else field.enum(part)


def text_of(part: KeyPart) -> str:
    """Return the text of one part of a key."""
    if isinstance(part, str):
        return part.translate(_ESCAPES)
    return part.isoformat() if isinstance(part, date) else str(part)


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text) if "%" in text else text


def _part_of(field: Field, text: str) -> KeyPart:
    if field.enum is not None:
        is_text = isinstance(next(iter(field.enum)).value, str)
        return text if is_text else int(text)
    match field.kind:
        case Kind.UUID:
            return UUID(text)
        case Kind.INT:
            return int(text)
        case Kind.DATE:
            return date.fromisoformat(text)
        case _:
            return text


def _taker(field: Field) -> Callable[[object], KeyPart]:
    """Return the function from a Python value of a field to its stored form. It raises as `KeyFields.take`."""
    rule, what = rule_of(field), field.enum or field.kind.value

    def taken(value: object) -> KeyPart:
        if not isinstance(value, what) or (isinstance(value, bool) and field.kind is Kind.INT):
            raise TypeError(f"{field.name}={shortened(value)} is no {what.__name__}")
        if rule is not None and (complaint := rule(value)) is not None:
            raise ValueError(f"{field.name}: {complaint}, not {shortened(value)}")
        return _exact(value)

    return taken


def _exact(value: Any) -> KeyPart:
    """Return the stored form of a value of the right type, which may be of a subclass of `str` or `int`."""
    stored = _stored(value)
    if isinstance(stored, str) and type(stored) is not str:
        return str.__str__(stored)
    return int(stored) if isinstance(stored, int) and type(stored) is not int else stored
