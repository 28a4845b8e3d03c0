"""The rows that one pass of `verify` over the log folds: those of a range of keys, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID


@dataclass(slots=True)
class LogRow:
    """A row as folded from the log.

    failed: the error of the fold, after which the row is unknown. events: the number of events it is folded from.
    places: the sum of their positions.
    """

    model: Any = None
    position: int = 0
    failed: str | None = None
    events: int = 0
    places: int = 0


class KeyRange:
    """The folded rows of the keys from `low` to `high`. If there are more than twice `rows`, the upper keys are dropped
    and left for another pass, and `high` is lowered."""

    def __init__(self, low: UUID, high: UUID, rows: int) -> None:
        self.folded: dict[int, LogRow] = {}
        self._lowest, self._highest = low.int, high.int
        self._rows = rows

    @property
    def high(self) -> UUID:
        return UUID(int=self._highest)

    def has(self, number: int) -> bool:
        """True if a key is in the range. number: the integer of the key."""
        return self._lowest <= number <= self._highest

    def row(self, number: int) -> LogRow | None:
        """Return the row of a key; None if the key is not in the range."""
        row = self.folded.get(number)
        if row is None and self.has(number):
            row = self.folded[number] = LogRow()
            if len(self.folded) > 2 * self._rows:
                self._cut()
                row = self.folded.get(number)
        return row

    def _cut(self) -> None:
        numbers = sorted(self.folded)
        self._highest = numbers[self._rows - 1]
        for number in numbers[self._rows :]:
            del self.folded[number]
