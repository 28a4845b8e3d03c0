"""What several fields of an operation ask for, asked once: aliases of one field cost no more than the field."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Once:
    """Answers by what was asked. They are kept as long as this is: for one operation."""

    def __init__(self) -> None:
        self._asked: dict[Hashable, _Asked] = {}

    async def get(self, what: Hashable, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `ask` gives, or raises, asked by the first who comes for it; others wait for the same."""
        asked = self._asked.get(what)
        if asked is None:
            asked = self._asked[what] = _Asked(asyncio.ensure_future(ask()))
        asked.waiting += 1
        try:
            # The executor cancels the fields beside one that failed: those elsewhere still wait for the answer.
            answer: T = await asyncio.shield(asked.task)
            return answer
        finally:
            asked.waiting -= 1
            if not asked.waiting and not asked.task.done():
                del self._asked[what]
                asked.task.cancel()


class _Asked:
    """A question under way, or answered, and how many wait for it."""

    def __init__(self, task: asyncio.Future[Any]) -> None:
        self.task = task
        self.waiting = 0
