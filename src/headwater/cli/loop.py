"""Runs the coroutine of a command in an event loop that lives as long as the command, and stops it on a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from enum import Enum, auto
from typing import Any, Literal, TypeVar

import asyncpg
import uvloop

from headwater.errors import HeadwaterError

logger = logging.getLogger(__name__)

T = TypeVar("T")

CLEAN_UP_SECONDS = 2.0
"""The time that cancelled work has to clean up, which may hang on a database that does not answer."""


class _Outcome(Enum):
    STOPPED = auto()


STOPPED: Literal[_Outcome.STOPPED] = _Outcome.STOPPED
"""The result of work that was cancelled by a stop."""


class DatabaseError(HeadwaterError):
    """PostgreSQL reported an error that the command did not expect. The message is PostgreSQL's."""


def complete(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a new event loop, and return its result.

    Raises:
        DatabaseError: the coroutine raised an error of PostgreSQL.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(work)
        except asyncpg.PostgresError as error:
            raise DatabaseError(f"{type(error).__name__}: {error}") from error


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | Literal[_Outcome.STOPPED]:
    """Await a coroutine and return its result; cancel it and return STOPPED if `stop` is set first."""
    working, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
    for task in (working, stopped):
        task.cancel()
    await asyncio.wait([working, stopped], timeout=CLEAN_UP_SECONDS)
    return working.result() if working.done() and not working.cancelled() else STOPPED


@asynccontextmanager
async def stopping() -> AsyncIterator[asyncio.Event]:
    """Yield an event that SIGINT and SIGTERM set. The log has a line when it is set, and one after the block."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    began = 0.0

    def begin(name: str) -> None:
        nonlocal began
        if not stop.is_set():
            began = loop.time()
            logger.info("stopping: %s was received", name)
            stop.set()

    for each in signals:
        loop.add_signal_handler(each, begin, each.name)
    try:
        yield stop
    finally:
        for each in signals:
            loop.remove_signal_handler(each)
    if stop.is_set():
        logger.info("stopped within %.1f s", loop.time() - began)
