"""The keys that the client of a filtered subscription holds, so that it is sent only removals that concern it."""

from __future__ import annotations

from collections.abc import Iterable

from headwater.domain.row_key import RowKey


class HeldKeys:
    """The keys that a client holds, up to a limit.

    Past the limit they are not remembered, and every key counts as held: a removal of a row that the client does not
    hold is harmless, a missing removal is not.
    """

    def __init__(self, keys: Iterable[RowKey] = (), *, limit: int) -> None:
        self._limit = limit
        self._keys: set[RowKey] | None = set()
        self.add(keys)

    def add(self, keys: Iterable[RowKey]) -> None:
        """Record that the client was sent rows of these keys."""
        if self._keys is not None:
            self._keys.update(keys)
            if len(self._keys) > self._limit:
                self._keys = None

    def drop(self, keys: Iterable[RowKey]) -> list[RowKey]:
        """Return those of the keys that the client may hold, and forget them: it is about to drop them."""
        if self._keys is None:
            return list(keys)
        held = [key for key in keys if key in self._keys]
        self._keys.difference_update(held)
        return held
