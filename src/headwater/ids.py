"""Identifiers. New ones are time-ordered: neighbours in time are neighbours in the index, so that an append touches few
pages. That is UUID version 7, RFC 9562 section 5.7; Python gets its own in 3.14.

Commands of Headwater's own have ids that are derived from what anybody can read in the log. They are of version 8,
which no client may name: or a client could have a command of their own taken for a saga's.
"""

from __future__ import annotations

import os
import time
from uuid import UUID, uuid5

_VERSION_AND_VARIANT = (0x7 << 76) | (0x2 << 62)
_RANDOM = ((1 << 80) - 1) & ~(0xF << 76) & ~(0x3 << 62)
_DERIVED = UUID("6f0f4a52-6e0f-5d0b-9d5d-8e2c8d2f7a11")


def new_id() -> UUID:
    """A new identifier: 48 bits of milliseconds since 1970, 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big") & _RANDOM
    return UUID(int=(milliseconds << 80) | _VERSION_AND_VARIANT | random)


def derived_id(source: UUID, name: str) -> UUID:
    """The same identifier each time for the same source and name, so that a repeated command creates the same thing."""
    return uuid5(_DERIVED, f"{source}:{name}")


def derived_in_time(source: UUID, name: str) -> UUID:
    """The same as `derived_id`, but of the source's time when that is a version 7: then it is time-ordered, too."""
    derived = derived_id(source, name)
    if source.version != 7:
        return derived
    return UUID(int=(source.int >> 80 << 80) | _VERSION_AND_VARIANT | (derived.int & _RANDOM))


def internal_id(source: UUID, name: str) -> UUID:
    """The same, for a command that Headwater issues or a record that it keeps: version 8, RFC 9562 section 5.8."""
    return UUID(int=derived_id(source, name).int & ~(0xF << 76) | (0x8 << 76))


def following_id(command_id: UUID, name: str) -> UUID:
    """An id derived from that of an internal command. Internal ids were once of version 5; what follows from such a one
    keeps to that, since a log may hold it already."""
    return internal_id(command_id, name) if is_internal(command_id) else derived_id(command_id, name)


def is_internal(command_id: UUID) -> bool:
    """Whether an id is one that only Headwater itself may use."""
    return command_id.version == 8
