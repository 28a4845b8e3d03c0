"""The results of a verification: counts, the differences between stored rows and the log, and violated invariants."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

LISTED = 100
"""Differences or violations that a report lists, at most. All are counted."""


@dataclass(frozen=True)
class Difference:
    """A difference between a stored row and the log.

    key: its text. column: the column that differs; `row` if only one of the two has the row; `fold` if the fold raised,
    or returned a value that cannot be stored; `history` if the row's history lists other events.
    """

    key: str
    column: str
    stored: object
    folded: object

    def __str__(self) -> str:
        return f"{self.key}  {self.column}: stored {self.stored!s}, folded {self.folded!s}"


@dataclass
class VerifyReport:
    """The result of a verification at one position.

    checked: rows compared. parked: keys with dead letters, whose rows are known to lag. found: the number of
    differences. differences: the first of them, at most `listed`.
    """

    name: str
    generation: int
    position: int
    checked: int = 0
    parked: int = 0
    found: int = 0
    differences: list[Difference] = field(default_factory=list)
    listed: int = LISTED

    def add(self, differences: list[Difference]) -> None:
        """Count differences, and keep the first ones."""
        self.found += len(differences)
        self.differences += differences[: self.listed - len(self.differences)]

    def lines(self) -> list[str]:
        """Return the report as text: a line of counts, then the differences."""
        parked = f", {self.parked:,} parked" if self.parked else ""
        found = _counted(self.found, "difference") if self.found else "no difference"
        counts = f"{self.name}: {_counted(self.checked, 'row')} compared at position {self.position:,}{parked}: {found}"
        return [counts, *(f"  {each}" for each in self.differences), *_rest(self.found - len(self.differences))]


@dataclass(frozen=True)
class FoundViolation:
    """The first event of a key that contradicts an invariant. key: a stream, or what the invariant's `key` returns."""

    key: UUID
    position: int
    sentence: str

    def __str__(self) -> str:
        return f"{self.key}  position {self.position:,}: {self.sentence}"


@dataclass
class InvariantReport:
    """The result of checking one invariant up to a position.

    events: events looked at. found: the number of keys with a violation. violations: the first of them by position, at
    most `listed`.
    """

    name: str
    position: int
    events: int = 0
    found: int = 0
    violations: list[FoundViolation] = field(default_factory=list)
    listed: int = LISTED

    def add(self, violations: list[FoundViolation]) -> None:
        """Count violations, and keep the first ones by position."""
        self.found += len(violations)
        kept = sorted([*self.violations, *violations], key=lambda each: each.position)
        self.violations = kept[: self.listed]

    def lines(self) -> list[str]:
        """Return the report as text: a line of counts, then the violations."""
        found = _counted(self.found, "violation") if self.found else "no violation"
        counts = f"{self.name}: {_counted(self.events, 'event')} checked up to position {self.position:,}: {found}"
        return [counts, *(f"  {each}" for each in self.violations), *_rest(self.found - len(self.violations))]


def _rest(more: int) -> list[str]:
    return [f"  and {more:,} more"] if more else []


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
