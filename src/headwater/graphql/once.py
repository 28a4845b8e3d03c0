"""Reads that several fields of an operation share: aliases of a field cost no more than the field."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Once:
    """Results by key, kept for one operation."""

    def __init__(self) -> None:
        self._asked: dict[Hashable, _Asked] = {}

    async def get(self, what: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `ask`, or raise its error. The first caller starts it; later ones wait for it."""
        asked = self._asked.get(what)
        if asked is None:
            asked = self._asked[what] = _Asked(asyncio.ensure_future(ask()))
        asked.waiting += 1
        try:
            # The executor cancels the siblings of a failed field, while fields elsewhere may still wait for the result.
            answer: T = await asyncio.shield(asked.task)
            return answer
        finally:
            asked.waiting -= 1
            if not asked.waiting and not asked.task.done():
                del self._asked[what]
                asked.task.cancel()


class _Asked:
    """A running or finished read, and the number of fields that wait for it."""

    def __init__(self, task: asyncio.Future[Any]) -> None:
        self.task = task
        self.waiting = 0
