"""A read model's fold, as all who fold take it: the live projection, a rebuild, verify and the past.

What the user's function gives is a row only if it is the row that the event was routed to. Where one of them took
another, the others would not: the live projection knows its rows by the keys of events, PostgreSQL by those of rows.
And its values are spelled as they will be read back, so that no row depends on which rows happen to be in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

from msgspec.structs import replace

from headwater.domain.canonical_values import Canonical, canonical_form_of
from headwater.domain.read_model import ReadModel, View
from headwater.errors import HeadwaterError

M = TypeVar("M", bound=ReadModel)

Fold: TypeAlias = Callable[[UUID, M | None, Any], M | None]
"""From a key, its row or None and an event to the row after it, or None."""


BREATH_SECONDS = 0.01
"""How long folds may keep the event loop. The heartbeat of this process's lease is a task like any other: were a whole
batch folded without a pause, a slow fold would have its lease run out, again and again."""


class Breath:
    """Between two folds: `if breath.due: await breath.take()`."""

    def __init__(self) -> None:
        self._taken = monotonic()

    @property
    def due(self) -> bool:
        """Whether the loop was kept for long enough."""
        return monotonic() - self._taken > BREATH_SECONDS

    async def take(self) -> None:
        """Let others have their turn."""
        await asyncio.sleep(0)
        self._taken = monotonic()


class RowMisplaced(HeadwaterError):
    """A fold gave a row of another key than the event was routed to. It counts as the event's failure."""


def fold_of(view: View[M]) -> Fold[M]:
    """The view's fold, whose rows are as they will be read from the table.

    Raises, when it is called:
        RowMisplaced.  Whatever the user's function raises.
    """
    fold, key_of_row, name = view.fold, view.key, view.name
    spelled = [(each.name, spell) for each in view.fields if (spell := canonical_form_of(each)) is not None]

    def folded(key: UUID, row: M | None, event: Any) -> M | None:
        after = fold(row, event)
        if after is None or after is row:
            return after
        given = getattr(after, key_of_row)
        if given is not key and getattr(given, "int", None) != key.int:  # UUIDs are compared in Python, and slowly
            raise RowMisplaced(f"the fold gave a row of {name} {given}, for an event that is routed to {key}")
        return _respelled(after, spelled) if spelled else after

    return folded


def _respelled(row: M, spelled: Sequence[tuple[str, Canonical]]) -> M:
    changes = None
    for name, spell in spelled:
        value = getattr(row, name)
        again = spell(value)
        if again is not value:
            changes = {**changes, name: again} if changes else {name: again}
    return replace(row, **changes) if changes else row
