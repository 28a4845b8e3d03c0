"""Waits for what a test expects: by a signal where there is one, else by polling."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from headwater.errors import OutcomeUnknown, Unavailable
from headwater.eventstore.positions import Positions

T = TypeVar("T")

LOOK_AGAIN_SECONDS = 0.01
LONGEST_PAUSE = 0.05


async def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Poll until the condition, which may return an awaitable, holds. Returns its value.

    Raises:
        AssertionError: the condition did not hold within so many seconds; the message shows its source.
    """
    limit, pause = asyncio.timeout(seconds), LOOK_AGAIN_SECONDS
    try:
        async with limit:
            while True:
                found = condition()
                if inspect.isawaitable(found):
                    found = await found
                if found:
                    return found
                # Rows of a database, another process and counters of this one send no signal.
                await asyncio.sleep(pause)
                pause = min(1.2 * pause, LONGEST_PAUSE)
    except TimeoutError:
        if not limit.expired():
            raise  # the condition itself raised it
        raise AssertionError(f"not so within {seconds} s: {_source(condition)}") from None


async def reached(positions: Positions, name: str, position: int, seconds: float = 30) -> None:
    """Wait until the log or a projection is known to have reached a position."""
    async with asyncio.timeout(seconds):
        while positions.known(name) < position:
            await positions.moved(name, position - 1, seconds)


def _source(condition: Callable[[], Any]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):  # a partial has none
        return repr(condition)


async def answered(call: Callable[[], Awaitable[T]], seconds: float = 30) -> T:
    """Call as a client that sends a command again does, until the log answers. Returns the result."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await call()
            except (Unavailable, OutcomeUnknown):
                await asyncio.sleep(LOOK_AGAIN_SECONDS)  # the end of an outage sends a client no signal
