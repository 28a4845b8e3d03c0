"""The memory of one pass of `verify` over the log: the rows of a range of keys, or the states of an invariant. It is
bounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

R = TypeVar("R")


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
    """The folded rows of the keys after `after` up to `upto`, by the number of the key: see `KeyFields`. None: the
    range has no such end. If there are more than twice `most`, the upper keys are dropped and left for another pass,
    and `upto` is lowered.

    new: makes the row of a key before its first event.
    """

    def __init__(self, after: Any, upto: Any, most: int, new: Callable[[], R]) -> None:
        self.folded: dict[Any, R] = {}
        self.after, self.upto = after, upto
        self.most = most
        self._new = new

    def has(self, number: Any) -> bool:
        """True if a key is in the range."""
        return (self.after is None or number > self.after) and (self.upto is None or number <= self.upto)

    def row(self, number: Any) -> R | None:
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
        self.upto = numbers[self.most - 1]
        for number in numbers[self.most :]:
            del self.folded[number]
