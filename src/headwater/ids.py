"""Identifiers.

New ids are UUIDs of version 7 (RFC 9562, section 5.7), which are ordered by time: ids of the same time are neighbours
in the index, so that an append touches few pages. Python has its own from 3.14 on.

The ids of commands that Headwater itself issues are derived from data that clients can read in the log. They are of
version 8, which no client may use: otherwise a client's command could be taken for that of a saga.
"""

from __future__ import annotations

import os
import time
from uuid import UUID, uuid5

_VERSION_AND_VARIANT = (0x7 << 76) | (0x2 << 62)
_RANDOM = ((1 << 80) - 1) & ~(0xF << 76) & ~(0x3 << 62)
_DERIVED = UUID("6f0f4a52-6e0f-5d0b-9d5d-8e2c8d2f7a11")

_STREAMS = UUID("0b1d5f5e-6c0a-5f3c-8a2e-51d1a4c7e9b3")


def new_id() -> UUID:
    """Return a new id: 48 bits of milliseconds since 1970, and 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big") & _RANDOM
    return UUID(int=(milliseconds << 80) | _VERSION_AND_VARIANT | random)


def derived_id(source: UUID, name: str) -> UUID:
    """Return the id derived from a source and a name: always the same, so that a repeated command creates nothing."""
    return uuid5(_DERIVED, f"{source}:{name}")


def stream_id_of(category: str, key: str) -> UUID:
    """Return the id of the stream of a category with a natural key, such as an ISBN. key: its text, without a colon."""
    return uuid5(_STREAMS, f"{category}:{key}")


def derived_in_time(source: UUID, name: str) -> UUID:
    """Return a derived id that is ordered by the time of its source, if that is of version 7; else `derived_id`."""
    derived = derived_id(source, name)
    if source.version != 7:
        return derived
    return UUID(int=(source.int >> 80 << 80) | _VERSION_AND_VARIANT | (derived.int & _RANDOM))


def internal_id(source: UUID, name: str) -> UUID:
    """Return a derived id of version 8 (RFC 9562, section 5.8), for a command that Headwater issues or its records."""
    return UUID(int=derived_id(source, name).int & ~(0xF << 76) | (0x8 << 76))


def is_internal(command_id: UUID) -> bool:
    """True if only Headwater itself may use the id."""
    return command_id.version == 8
