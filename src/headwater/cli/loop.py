"""Runs the coroutine of a command in an event loop that lives as long as the command."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from enum import Enum, auto
from typing import Any, Literal, TypeVar

import uvloop

T = TypeVar("T")

CLEAN_UP_SECONDS = 2.0
"""The time that cancelled work has to clean up, which may hang on a database that does not answer."""


class _Outcome(Enum):
    STOPPED = auto()


STOPPED: Literal[_Outcome.STOPPED] = _Outcome.STOPPED
"""The result of work that was cancelled by a stop."""


def complete(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a new event loop, and return its result."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | Literal[_Outcome.STOPPED]:
    """Await a coroutine and return its result; cancel it and return STOPPED if `stop` is set first."""
    working, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
    for task in (working, stopped):
        task.cancel()
    await asyncio.wait([working, stopped], timeout=CLEAN_UP_SECONDS)
    return working.result() if working.done() and not working.cancelled() else STOPPED
