"""Time-ordered identifiers: neighbours in time are neighbours in the index, so that an append touches few pages.

UUID version 7 as in RFC 9562 section 5.7. Python gets its own in 3.14.
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
