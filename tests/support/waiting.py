"""Waiting for what a test expects: by a signal where there is one, and else by looking until it is so."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from headwater.eventstore.positions import Positions

LOOK_AGAIN_SECONDS = 0.01


async def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Look until the condition, which may be a coroutine, holds; what it returned then.

    Raises:
        AssertionError: it has not held within so many seconds; with its source.
    """
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            while True:
                found = condition()
                if inspect.isawaitable(found):
                    found = await found
                if found:
                    return found
                # Rows in a database, another process and the counters of this one ring nobody.
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
    except TimeoutError:
        if not limit.expired():
            raise  # the condition's own
        raise AssertionError(f"not so within {seconds} s: {_source(condition)}") from None


async def reached(positions: Positions, name: str, position: int, seconds: float = 30) -> None:
    """Wait until the log or a projection is heard to have come so far."""
    async with asyncio.timeout(seconds):
        while positions.known(name) < position:
            await positions.moved(name, position - 1, seconds)


def _source(condition: Callable[[], Any]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):  # a partial has none
        return repr(condition)
