"""Events and states to stored JSON and back. The log keeps names and versions, but no Python modules."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from headwater.domain.fields import Kind as FieldKind
from headwater.domain.fields import carried_fields_of
from headwater.domain.messages import Command, Event
from headwater.domain.upcasting import Chains, Kind, Upcaster
from headwater.domain.value_rules import Rule, broken_rules, rule_of
from headwater.errors import DefinitionError, LogError, UnreadableEvent

_encode = msgspec.json.Encoder(decimal_format="string").encode
_exactly = msgspec.msgpack.Encoder(decimal_format="string").encode
_fields = msgspec.json.Decoder(dict[str, Any]).decode

_NUL = b"\\u0000"
"""A NUL character in JSON text. Text with a backslash before it matches, too, and is then examined."""


def encode(event: Event) -> str:
    """Return the event as JSON text. Decimals and times are strings, so that no decimal becomes a float.

    The text is decoded again before it is returned. A struct does not check the values that it is made of, and an event
    that its class cannot read would stay in the log for ever: no command on its stream could be decided.

    Raises:
        UnreadableEvent: a value would not be read back as it is, or breaks the rule of its kind (see `value_rules`).
    """
    reading = _reading_of(type(event))  # type: ignore[arg-type]  # mypy takes no class for hashable
    try:
        data = reading.encode(event)
        again = reading.decode(data)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _unreadable(event, str(error)) from error
    for name, rule in reading.rules:
        value = getattr(event, name)
        if value is not None and rule(value) is not None:
            _require_rules(event)
    if reading.nested or _NUL in data:
        _require_rules(event)
    if again != event:
        _require_same(event, again)
    return data.decode()


def stored_form(event: Event) -> tuple[str, int, str]:
    """Return an event as the log stores it: its type, its version and its JSON text."""
    return event.__declared__.name, event.__declared__.version, encode(event)


def _encode_in_order(event: Event) -> bytes:
    """Encode an event with sets. The order of a set of texts differs from process to process."""
    return _encode(msgspec.to_builtins(event, str_keys=True, order="deterministic"))


class _Reading(NamedTuple):
    """The encoder and the decoder of an event type, and the checks of its events.

    encode: with sets in order, so that they give the same bytes in each process. rules: of the fields that hold one
    value and no text. nested: there are fields with values inside that have rules. Text breaks its rule only if the
    JSON text has an escaped NUL character: other text that cannot be stored cannot be encoded.
    """

    encode: Callable[[Event], bytes]
    decode: Callable[[bytes], Event]
    rules: Sequence[tuple[str, Rule]]
    nested: bool


@cache
def _reading_of(event: type[Event]) -> _Reading:
    """Return how an event type is read back."""
    carried = {each.name: each for each in carried_fields_of(event)}
    one = [each for each in carried.values() if not each.is_json]
    rules = [(each.name, rule) for each in one if each.kind is not FieldKind.TEXT and (rule := rule_of(each))]
    nested = any(
        (each := carried.get(name)) is None or (each.is_json and each.kind not in _ONLY_TEXT)
        for name in event.__struct_fields__
    )
    sets = any(isinstance(each, inspect.SetType | inspect.FrozenSetType) for each in _parts(inspect.type_info(event)))
    encode = _encode_in_order if sets else _encode
    return _Reading(encode, msgspec.json.Decoder(event).decode, rules, nested)


_ONLY_TEXT = (FieldKind.TEXT, FieldKind.UUID, FieldKind.BOOL, FieldKind.DATE, FieldKind.ENUM, FieldKind.BYTES)
"""Kinds that no rule applies to, beside that for text."""


def _require_rules(event: Event) -> None:
    """Raise UnreadableEvent if a value of the event breaks the rule of its kind."""
    for place, complaint in broken_rules(event):
        raise UnreadableEvent(
            f"{type(event).__name__} cannot be written: its field {'.'.join(place)} breaks a rule: {complaint}"
        )


def _require_same(event: Event, again: Event) -> None:
    """Raise UnreadableEvent unless both have the same MessagePack form. A comparison of the values themselves would be
    too strict: a tuple is read back as a list. A comparison of their JSON would be too lax: it has null for None, NaN
    and the infinities alike.
    """
    for name in event.__struct_fields__:
        given, read = getattr(event, name), getattr(again, name)
        if read != given and _exactly(read) != _exactly(given):
            raise _unreadable(event, f"its field {name} would be read back as {read!r}, not as {given!r}")


def _unreadable(event: Event, reason: str) -> UnreadableEvent:
    return UnreadableEvent(
        f"{type(event).__name__} cannot be written, since it could not be read back as it is: {reason}"
    )


class Codec:
    """Reads all event types of an app by stored name and version, older versions through the app's upcasters.

    Raises:
        DefinitionError: two types have one name, JSON cannot carry a field, or a chain of upcasters is wrong.
    """

    def __init__(self, events: Iterable[type[Event]], upcasters: Iterable[Upcaster] = ()) -> None:
        self._types: dict[str, type[Event]] = {}
        self._decoders: dict[Kind, Callable[[str], Event]] = {}
        for event in events:
            self._add(event)
        self._chains = Chains(upcasters, {name: event.__declared__.version for name, event in self._types.items()})
        for kind in self._chains.ends:
            self._decoders[kind] = self._reader_of(kind)

    def _add(self, event: type[Event]) -> None:
        other = self._types.setdefault(event.__declared__.name, event)
        if other is not event:
            raise DefinitionError(
                f"{_full_name(other)} and {_full_name(event)} are both stored as {event.__declared__.name!r};"
                " give one of them another `name=`"
            )
        require_readable(event)
        decoder = msgspec.json.Decoder(event)
        self._decoders[event.__declared__.name, event.__declared__.version] = decoder.decode

    def _reader_of(self, kind: Kind) -> Callable[[str], Event]:
        """Return the decoder of an older kind. Current kinds have decoders of their own, without upcasters."""
        upcast, types = self._chains.upcast, self._types

        def read(data: str) -> Event:
            name, fields = upcast(kind, _fields(data))
            try:
                return msgspec.convert(fields, types[name], str_keys=True)
            except msgspec.ValidationError as error:
                raise LogError(
                    f"A stored {kind[0]} of version {kind[1]} does not fit {name} after its upcasters: {error}"
                ) from error

        return read

    def decode(self, name: str, version: int, data: str) -> Event:
        """Return the event of a stored row.

        Raises:
            LogError: no class reads this name and version, an upcaster failed, or the data does not fit the class.
        """
        decoder = self._decoders.get((name, version))
        if decoder is None:
            raise LogError(self._unknown(name, version))
        try:
            return decoder(data)
        except msgspec.MsgspecError as error:
            raise LogError(f"A stored {name} of version {version} does not fit its class: {error}") from error
        except LogError:
            raise
        except Exception as error:  # from the class's own `__post_init__`; an OSError of it is not one of the database
            raise LogError(
                f"A stored {name} of version {version} cannot be read: {type(error).__name__}: {error}"
            ) from error

    def classes_of(self, name: str, version: int) -> frozenset[type[Event]]:
        """Return the classes that an event with this stored name and version may be read as.

        Raises:
            LogError: no class reads this name and version.
        """
        if (name, version) not in self._decoders:
            raise LogError(self._unknown(name, version))
        ends = self._chains.ends.get((name, version), (name,))
        return frozenset(self._types[end] for end in ends)

    def stored_names(self, events: Collection[type[Event]]) -> list[str]:
        """Return the names under which events of these classes may be stored: their own, and older ones.

        An event with an older name may also become another class, which the caller must skip.
        """
        wanted = frozenset(events)
        return sorted({kind[0] for kind in self._decoders if wanted & self.classes_of(*kind)})

    def _unknown(self, name: str, version: int) -> str:
        known = sorted(known for stored, known in self._decoders if stored == name)
        if not known:
            return f"The log holds events of type {name!r}, which no class of this app reads"
        return f"The log holds {name} of version {version}; this app reads version {' and '.join(map(str, known))}"


def require_readable(message: type[Command | Event]) -> None:
    """Check that msgspec can read each field back from JSON. Without this check, a bound that does not fit its type, or
    a class that JSON does not have, would be reported only when the first message is read.

    Raises:
        DefinitionError: msgspec cannot read a field's type with its bounds.
    """
    for each in msgspec.structs.fields(message):  # type: ignore[arg-type]  # type checkers do not see a struct
        where = f"{message.__name__}.{each.name}"
        try:
            msgspec.json.Decoder(each.type)
            parts = list(_parts(inspect.type_info(each.type)))
        except Exception as error:  # msgspec calls code of foreign types
            raise DefinitionError(f"{where} cannot be read from JSON: {error}") from error
        for part in parts:
            if isinstance(part, inspect.CustomType):
                raise DefinitionError(
                    f"{where}: JSON has no form for {_spelled(part.cls)}; make it a Value: "
                    f"class {part.cls.__name__}(Value)"
                )


def _parts(whole: inspect.Type) -> Iterator[inspect.Type]:
    """Yield a type and every type inside it, each once."""
    seen: set[int] = set()
    waiting: list[object] = [whole]
    while waiting:
        part = waiting.pop()
        if isinstance(part, tuple):
            waiting.extend(part)
        elif isinstance(part, inspect.Field):
            waiting.append(part.type)
        elif isinstance(part, inspect.Type) and id(part) not in seen:
            seen.add(id(part))
            yield part
            waiting.extend(getattr(part, name) for name in part.__struct_fields__)


class StateCodec:
    """Converts a decider's state to JSON and back. `shape` is a hash of the names and types of the state's fields.

    Raises:
        DefinitionError: a part of the type cannot be read back from JSON.
    """

    def __init__(self, state: object) -> None:
        try:
            info = inspect.type_info(state)
            self._decode = msgspec.json.Decoder(state).decode
        except Exception as error:  # msgspec calls code of foreign types
            raise DefinitionError(f"{_spelled(state)} cannot be kept as JSON: {error}") from error
        self.shape = hashlib.sha256(json.dumps(_shape(info, ())).encode()).hexdigest()[:16]

    def encode(self, state: object) -> str:
        """Return the state as JSON text.

        Raises:
            ValueError: another state would be read back.
        """
        text = _encode(state).decode()
        if (again := self._decode(text)) != state:
            raise ValueError(f"it would be read back as {again!r}, not as {state!r}")
        return text

    def decode(self, text: str) -> object:
        """Return the state of a text. Raises `msgspec.MsgspecError` if the text does not fit the state's type."""
        return self._decode(text)


def _shape(part: object, above: tuple[object, ...]) -> object:
    """Return the parts of a type that show in JSON, as nested lists. Class names and defaults do not show."""
    if isinstance(part, inspect.CustomType | inspect.AnyType | inspect.RawType):
        raise DefinitionError(f"{_spelled(getattr(part, 'cls', Any))} cannot be read back from JSON")
    if isinstance(part, inspect.Field):
        return [part.encode_name, part.required, _shape(part.type, above)]
    if isinstance(part, inspect.Type):
        if any(part is each for each in above):
            return "itself"  # a recursive type
        above = (*above, part)
        inner = [_shape(getattr(part, name), above) for name in part.__struct_fields__]
        return [type(part).__name__, *inner]
    if isinstance(part, tuple):
        return [_shape(each, above) for each in part]
    if isinstance(part, type):
        return [repr(member.value) for member in part] if issubclass(part, enum.Enum) else None
    return repr(part)


def _spelled(annotation: object) -> str:
    return _full_name(annotation) if isinstance(annotation, type) else str(annotation)


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
