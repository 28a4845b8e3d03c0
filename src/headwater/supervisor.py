"""Owners for background tasks: a death is logged, shows in readiness, and is followed by a new start with backoff."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
STOP_AGAIN_SECONDS = 0.5
STEADY_SECONDS = 30.0
"""A task that ran this long had recovered: its next failure starts from the first pause again."""


def backoff(failures: int, *, first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE) -> float:
    """Seconds to wait after so many failures in a row: doubling, capped, and spread so that not all return at once."""
    return min(longest, first * 2.0 ** min(failures - 1, 20)) * random.uniform(0.5, 1.0)


class Supervisor:
    """Runs tasks by name until it is closed: `async with Supervisor() as s: s.start("listener", run)`.

    is_logged: takes a task's name and its error; True if that failure is logged elsewhere, as part of an outage.
    """

    def __init__(self, is_logged: Callable[[str, BaseException], bool] = lambda name, error: False) -> None:
        self._is_logged = is_logged
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._troubles: dict[str, str] = {}
        self._over_at: float | None = None

    @property
    def troubles(self) -> dict[str, str]:
        """What is not well now: task name to its last error. Empty when all run."""
        return dict(self._troubles)

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a loop that should never end by itself."""
        self._tasks[name] = asyncio.create_task(self._keep(name, run), name=name)

    def well(self, name: str) -> None:
        """Said by a task that has got over its trouble."""
        self._troubles.pop(name, None)

    def unwell(self, name: str, why: str) -> None:
        """Said by a task that is in trouble, and tries to get over it by itself."""
        self._troubles[name] = why

    async def stop(self, *names: str) -> None:
        """End tasks, all at the same time, and wait for their end."""
        ending = [task for name in names if (task := self._tasks.pop(name, None)) is not None]
        await _end(ending)
        for name in names:
            self._troubles.pop(name, None)

    async def stop_all(self) -> None:
        """End whatever runs, what was started last first."""
        while self._tasks:
            await self.stop(*reversed(self._tasks))

    def over_within(self, seconds: float) -> None:
        """From now on, farewells have that long together."""
        self._over_at = asyncio.get_running_loop().time() + seconds

    async def farewell(self, word: Coroutine[Any, Any, object], seconds: float) -> None:
        """Have a last word said: in so many seconds, and in half of what is left, since others want to say theirs.

        Raises:
            TimeoutError: it has taken longer.
        """
        if self._over_at is not None:
            seconds = min(seconds, max(0, self._over_at - asyncio.get_running_loop().time()) / 2)
        await within(seconds, word)

    async def __aenter__(self) -> Supervisor:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop_all()

    async def _keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            started = loop.time()
            steady = loop.call_later(STEADY_SECONDS, self.well, name)
            try:
                await run()
                raise RuntimeError("it ended by itself")
            except Exception as error:
                if self._tasks.get(name) is not asyncio.current_task():
                    logger.warning("%s raised %r when it was told to stop", name, error)
                    return
                failures = 1 if loop.time() - started > STEADY_SECONDS else failures + 1
                pause = backoff(failures)
                self._troubles[name] = f"{type(error).__name__}: {error}"
                if not self._is_logged(name, error):
                    logger.exception("%s died; it starts again in %.1f s (failure %d)", name, pause, failures)
            finally:
                steady.cancel()
            await asyncio.sleep(pause)


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """What some work comes to, if it does in time. `asyncio.timeout` would wait for its way out as well, which a silent
    database holds up for ever: a pool has its connection back when the statement has ended.

    Raises:
        TimeoutError: it has taken longer.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task], timeout=seconds)
        if not task.done():
            raise TimeoutError(f"it took longer than {seconds:.1f} s")
        return task.result()
    finally:
        await _end([task])


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    # Again and again: a cancellation is lost when the connection that a task waits for dies in the same moment, since
    # leaving the transaction then raises in its place. And where the database says nothing, each step out is held up.
    ending = {task for task in tasks if not task.done()}
    while ending:
        for task in tasks:  # in their order
            task.cancel()
        _, ending = await asyncio.wait(ending, timeout=STOP_AGAIN_SECONDS)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # asked for, or asyncio complains that nobody did
