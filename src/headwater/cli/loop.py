"""The event loop of a command, which lives as long as the command's work."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from enum import Enum, auto
from typing import Any, Literal, TypeVar

import uvloop

T = TypeVar("T")

GIVEN_UP_SECONDS = 2.0


class _Outcome(Enum):
    STOPPED = auto()


STOPPED: Literal[_Outcome.STOPPED] = _Outcome.STOPPED
"""What becomes of work that was given up."""


def complete(work: Coroutine[Any, Any, T]) -> T:
    """Do some work to its end, in a loop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def until(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do some work until it ends, or until told to stop."""
    await unless(stop, work)


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | Literal[_Outcome.STOPPED]:
    """Do some work to its end; or give it up, when told to stop before that."""
    working, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
    for task in (working, stopped):
        task.cancel()
    # Not for ever: what it is to clean up may hang on a database that says nothing.
    await asyncio.wait([working, stopped], timeout=GIVEN_UP_SECONDS)
    return working.result() if working.done() and not working.cancelled() else STOPPED
