"""The owner of background tasks: a task that fails is logged, shown in readiness, and started again with backoff."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
STOP_AGAIN_SECONDS = 0.5


def backoff(failures: int, *, first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE) -> float:
    """Return the seconds to wait after so many failures in a row: doubled each time, capped, with random jitter."""
    return min(longest, first * 2.0 ** min(failures - 1, 20)) * random.uniform(0.5, 1.0)


class Supervisor:
    """Runs tasks by name until it is closed: `async with Supervisor() as s: s.start("listener", run)`.

    is_logged: takes a task's name and its error; True if that failure is logged elsewhere, as part of an outage.
    pause: takes the number of failures in a row; returns the seconds to wait before the next start. `backoff` if None.
    steady_seconds: a task that ran this long has recovered: after its next failure the pauses begin anew.
    """

    def __init__(
        self,
        is_logged: Callable[[str, BaseException], bool] = lambda name, error: False,
        *,
        pause: Callable[[int], float] | None = None,
        steady_seconds: float = 30.0,
    ) -> None:
        self._is_logged = is_logged
        self._pause = pause
        self._steady_seconds = steady_seconds
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._troubles: dict[str, tuple[str, BaseException | None]] = {}
        self._over_at: float | None = None

    @property
    def troubles(self) -> dict[str, str]:
        """The tasks that are in trouble, by name, with the last error of each. Empty if all are well."""
        return {name: why for name, (why, _) in self._troubles.items()}

    @property
    def errors(self) -> dict[str, BaseException | None]:
        """The last error of each task in trouble, by name. None for one that reported its trouble itself."""
        return {name: error for name, (_, error) in self._troubles.items()}

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Start a task that should never end by itself. It is started again when it raises or returns."""
        self._tasks[name] = asyncio.create_task(self._keep(name, run), name=name)

    def well(self, name: str) -> None:
        """Clear the trouble of a task. The task calls this when it has recovered."""
        self._troubles.pop(name, None)

    def unwell(self, name: str, why: str) -> None:
        """Record the trouble of a task that retries by itself. The task calls this."""
        self._troubles[name] = (why, None)

    async def stop(self, *names: str) -> None:
        """Cancel tasks, all at the same time, and wait until they have ended."""
        ending = [task for name in names if (task := self._tasks.pop(name, None)) is not None]
        await _end(ending)
        for name in names:
            self._troubles.pop(name, None)

    async def stop_all(self) -> None:
        """Stop all tasks, in the reverse order of their start."""
        while self._tasks:
            await self.stop(*reversed(self._tasks))

    def over_within(self, seconds: float) -> None:
        """Limit the total time of all calls of `farewell` from now on."""
        self._over_at = asyncio.get_running_loop().time() + seconds

    async def farewell(self, work: Coroutine[object, object, object], seconds: float) -> None:
        """Run the last work of a part of the process that ends. It is cut off after `seconds`, or earlier: after half
        of the time that `over_within` has left.

        Raises:
            TimeoutError: the work takes longer.
        """
        if self._over_at is not None:
            seconds = min(seconds, max(0, self._over_at - asyncio.get_running_loop().time()) / 2)
        await within(seconds, work)

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
            steady = loop.call_later(self._steady_seconds, self.well, name)
            try:
                await run()
                raise RuntimeError("the task returned, though it should run until it is cancelled")
            except Exception as error:
                if self._tasks.get(name) is not asyncio.current_task():
                    logger.warning("%s raised %r while it was being stopped", name, error)
                    return
                failures = 1 if loop.time() - started > self._steady_seconds else failures + 1
                pause = (self._pause or backoff)(failures)
                self._troubles[name] = (f"{type(error).__name__}: {error}", error)
                if not self._is_logged(name, error):
                    logger.exception("%s died; it starts again in %.1f s (failure %d)", name, pause, failures)
            finally:
                steady.cancel()
            await asyncio.sleep(pause)


async def within(seconds: float, work: Coroutine[object, object, T]) -> T:
    """Return the result of some work.

    `asyncio.timeout` would wait for the cleanup of cancelled work as well. With a silent database that takes for ever,
    since the pool waits for the end of the statement before it takes a connection back.

    Raises:
        TimeoutError: the work takes longer.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task], timeout=seconds)
        if not task.done():
            raise TimeoutError(f"it took longer than {seconds:.1f} s")
        return task.result()
    finally:
        await _end([task])


async def _end(tasks: Sequence[asyncio.Task[T]]) -> None:
    # Cancelled repeatedly: a cancellation is lost if the connection that a task waits for ends at the same moment,
    # since the exit of the transaction raises another error instead. And a silent database delays each step of the
    # cleanup.
    ending = {task for task in tasks if not task.done()}
    while ending:
        for task in tasks:  # in their order
            task.cancel()
        _, ending = await asyncio.wait(ending, timeout=STOP_AGAIN_SECONDS)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # retrieved: asyncio logs an exception that is not
