"""The memory of one pass of `verify` over the log: the rows of a range of keys, or the states of an invariant. It is
bounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

R = TypeVar("R")

FIRST, LAST = UUID(int=0), UUID(int=2**128 - 1)


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


class KeyRange(Generic[R]):
    """The folded rows of the keys from `low` to `high`. If there are more than twice `most`, the upper keys are dropped
    and left for another pass, and `high` is lowered.

    new: makes the row of a key before its first event.
    """

    def __init__(self, low: UUID, high: UUID, most: int, new: Callable[[], R]) -> None:
        self.folded: dict[int, R] = {}
        self._lowest, self._highest = low.int, high.int
        self.most = most
        self._new = new

    @property
    def high(self) -> UUID:
        return UUID(int=self._highest)

    def has(self, number: int) -> bool:
        """True if a key is in the range. number: the integer of the key."""
        return self._lowest <= number <= self._highest

    def row(self, number: int) -> R | None:
        """Return the row of a key; None if the key is not in the range."""
        row = self.folded.get(number)
        if row is None and self.has(number):
            row = self.folded[number] = self._new()
            if len(self.folded) > 2 * self.most:
                self._cut()
                row = self.folded.get(number)
        return row

    def _cut(self) -> None:
        numbers = sorted(self.folded)
        self._highest = numbers[self.most - 1]
        for number in numbers[self.most :]:
            del self.folded[number]
