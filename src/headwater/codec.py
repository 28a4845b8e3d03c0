"""Events to stored JSON and back. The names and versions in the log are the contract, not the Python modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from headwater.errors import DefinitionError, LogError
from headwater.messages import Event

_encode = msgspec.json.Encoder(decimal_format="string").encode


def encode(event: Event) -> str:
    """The event as JSON text: decimals and times as strings, so that nothing is ever a float."""
    return _encode(event).decode()


class Codec:
    """Reads every event type of an app by its stored name and version."""

    def __init__(self, events: Iterable[type[Event]]) -> None:
        self._types: dict[str, type[Event]] = {}
        self._decoders: dict[tuple[str, int], Callable[[str], Any]] = {}
        for event in events:
            self._add(event)

    def _add(self, event: type[Event]) -> None:
        other = self._types.setdefault(event.event_name, event)
        if other is not event:
            raise DefinitionError(
                f"{_full_name(other)} and {_full_name(event)} are both stored as {event.event_name!r};"
                " give one of them another `name=`"
            )
        try:
            decoder = msgspec.json.Decoder(event)
        except TypeError as error:
            raise DefinitionError(f"{event.__name__} has a field that JSON cannot carry: {error}") from error
        self._decoders[event.event_name, event.event_version] = decoder.decode

    def decode(self, name: str, version: int, data: str) -> Event:
        """The event of a stored row.

        Raises:
            LogError: no class reads this name and version, or the data does not fit the class.
        """
        decoder = self._decoders.get((name, version))
        if decoder is None:
            raise LogError(self._unknown(name, version))
        try:
            return decoder(data)  # type: ignore[no-any-return]  # a decoder of an Event gives one
        except msgspec.MsgspecError as error:
            raise LogError(f"A stored {name} of version {version} does not fit its class: {error}") from error

    def _unknown(self, name: str, version: int) -> str:
        known = self._types.get(name)
        if known is None:
            return f"The log holds events of type {name!r}, which no class of this app reads"
        return f"The log holds {name} of version {version}; this app reads version {known.event_version}"


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
