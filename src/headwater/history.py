"""A row as it was: folded from the log, with the fold that keeps the row now.

A read model can show its past when each of its rows is the fold of one stream: its events are found by the key that is
their stream's id. Then the stream is read, by its index, up to the position that was asked for.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any
from uuid import UUID

from headwater.database import PASSING
from headwater.errors import AsOfUnsupported, CodeFailed
from headwater.feature import Domain
from headwater.filter import Row
from headwater.folding import fold_of
from headwater.log import Log
from headwater.tables import writer_of
from headwater.view import View

PAGE = 500
"""Events folded between two turns of the event loop."""


def has_history(domain: Domain, view: View[Any]) -> bool:
    """Whether each row of a read model is the fold of the stream of its key."""
    keys = {decider.category: decider.key for decider in domain.deciders}
    return view.route is None and all(keys[domain.category_of[event]] == view.key for event in view.events)


class History:
    """The past of one read model."""

    def __init__(self, domain: Domain, view: View[Any], log: Log) -> None:
        self._view = view
        self._log = log
        self._has_history = has_history(domain, view)
        self._routes = {event: view.route_of(event) for event in view.events}
        self._fold = fold_of(view)
        self._columns = [(each.name, writer_of(each)) for each in view.fields]

    def require(self) -> None:
        """Raises AsOfUnsupported when the read model cannot show its past."""
        if not self._has_history:
            raise AsOfUnsupported(
                f"{self._view.name} cannot be read as of the past: its rows gather events of several streams."
            )

    async def row(self, key: UUID, position: int) -> Row | None:
        """The row after a position, as it would be stored; None before it existed or after it was removed.

        Its `position` is that of the last event that changed it.

        Raises:
            AsOfUnsupported: the read model cannot show its past.  CodeFailed: a fold raised.
        """
        self.require()
        model, changed = None, 0
        fold = self._fold
        # Each page is fetched, so that other work goes on between two.
        async with aclosing(self._log.read_stream(key, page=PAGE)) as stream:
            async for _, event in stream:
                if event.position > position:
                    break
                route = self._routes.get(type(event.data))
                if route is None or route(event.data) != key:
                    continue
                try:
                    after = fold(key, model, event)
                except PASSING as error:  # of a fold, it says nothing of the database
                    raise CodeFailed(error) from error
                if after is not model:
                    model, changed = after, event.position
        if model is None:
            return None
        return {name: write(getattr(model, name)) for name, write in self._columns} | {"position": changed}
