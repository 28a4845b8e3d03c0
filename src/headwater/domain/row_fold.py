"""A read model's fold, as the projector, a rebuild, verify and `asOf` call it.

The user's function must return the row of the key that the event was routed to: the projector finds rows by the keys of
events, PostgreSQL by the keys of rows. The values of the row are brought into canonical form, so that no row depends on
which rows are in memory.
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
"""From a key, its row or None, and an event, to the row after the event or None."""


BREATH_SECONDS = 0.01
"""How long folds may block the event loop. The heartbeat of this process's leases runs on the same loop: if a whole
batch were folded without a pause, a slow fold would let its lease expire, again and again."""


class Breath:
    """Between two folds: `if breath.due: await breath.take()`."""

    def __init__(self) -> None:
        self._taken = monotonic()

    @property
    def due(self) -> bool:
        """True if the loop has been blocked for `BREATH_SECONDS`."""
        return monotonic() - self._taken > BREATH_SECONDS

    async def take(self) -> None:
        """Let other tasks run."""
        await asyncio.sleep(0)
        self._taken = monotonic()


class RowMisplaced(HeadwaterError):
    """A fold returned a row of another key than the event was routed to. It counts as the event's failure."""


def fold_of(view: View[M]) -> Fold[M]:
    """Return the view's fold, with its rows in canonical form.

    Raises, when it is called:
        RowMisplaced, and any exception of the user's function.
    """
    fold, key_of_row, name = view.fold, view.key, view.name
    spelled = [(each.name, spell) for each in view.fields if (spell := canonical_form_of(each)) is not None]

    def folded(key: UUID, row: M | None, event: Any) -> M | None:
        after = fold(row, event)
        if after is None or after is row:
            return after
        given = getattr(after, key_of_row)
        if given is not key and getattr(given, "int", None) != key.int:  # UUIDs are compared in Python, and slowly
            raise RowMisplaced(f"the fold returned a row of {name} {given}, for an event that is routed to {key}")
        return _in_canonical_form(after, spelled) if spelled else after

    return folded


def _in_canonical_form(row: M, spelled: Sequence[tuple[str, Canonical]]) -> M:
    changes = None
    for name, spell in spelled:
        value = getattr(row, name)
        again = spell(value)
        if again is not value:
            changes = {**changes, name: again} if changes else {name: again}
    return replace(row, **changes) if changes else row
