"""What a subscription with a filter has to remember of what it sent: which keys its client holds."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

MOST_HELD = 10_000
"""Keys that are remembered: a megabyte for each subscription."""


class Held:
    """The keys that a client holds, while they are not too many. From then on each key may be one of them: a removal of
    what it never held does a client no harm, and one that it is not told of does."""

    def __init__(self, keys: Iterable[UUID] = ()) -> None:
        self._keys: set[UUID] | None = set()
        self.add(keys)

    def add(self, keys: Iterable[UUID]) -> None:
        """It was sent these."""
        if self._keys is not None:
            self._keys.update(keys)
            if len(self._keys) > MOST_HELD:
                self._keys = None

    def drop(self, keys: Iterable[UUID]) -> list[UUID]:
        """Those of some keys that it may hold: it is to hold them no longer."""
        if self._keys is None:
            return list(keys)
        held = [key for key in keys if key in self._keys]
        self._keys.difference_update(held)
        return held
