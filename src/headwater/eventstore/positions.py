"""Where the log and each projection stand, as far as this process has heard, and waiting for one to move.

What is heard may be late, so whoever waits also looks for himself now and then. It is hardly ever wrong, since
positions only grow; but a ring can be forged, and a log or a checkpoint can go back under a running process, with a
restore, a failover, or a crash of PostgreSQL that takes the last commits of projections with it. So what was heard is
forgotten with the connection that it was heard on, and put right by whoever looks and finds less.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

LOG = "log"
"""The log's own name among the positions."""


def generation_of(name: str) -> str:
    """What a projection's live generation is known as: a number that only grows, too."""
    return f"{name} generation"


class Positions:
    """Positions by name (`LOG`, or a projection), with waiters."""

    def __init__(self) -> None:
        self._known: defaultdict[str, int] = defaultdict(int)
        self._waiting: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self._alarms = 0

    @property
    def alarms(self) -> int:
        """How often everyone was woken. Who looks for himself and then waits asks before he looks, and says so when he
        waits: an alarm in between is not missed."""
        return self._alarms

    def known(self, name: str) -> int:
        """The greatest position heard of; 0 when none was. Ask the database where it must not be too much."""
        return self._known[name]

    def report(self, name: str, position: int) -> None:
        """Something has come this far: wake those who wait for it."""
        if position > self._known[name]:
            self._known[name] = position
            self._wake(name)

    def correct(self, name: str, heard: int, found: int) -> None:
        """The database says `found` to one who asked it when `heard` was known: if that was more, it was wrong. Without
        this, who waits for what is beyond `found` would be told again and again that it is there."""
        if found < heard == self._known[name]:
            self._known[name] = found

    def forget(self) -> None:
        """The connection on which all this was heard is lost, or new: nothing is known."""
        self._known.clear()

    def wake_everyone(self) -> None:
        """Something may have been missed: let everyone look for himself."""
        self._alarms += 1
        for name in list(self._waiting):
            self._wake(name)

    async def moved(self, name: str, after: int, seconds: float, alarms: int | None = None) -> None:
        """Return when the position is heard to be beyond `after`, when everyone is woken, or after so many seconds.
        alarms: how many there were when the caller looked last; when there is another since, it returns at once."""
        if self._known[name] > after or alarms not in (None, self._alarms):
            return
        waiting = asyncio.get_running_loop().create_future()
        self._waiting[name].add(waiting)
        try:
            # Not wait_for: before Python 3.12 it loses a cancellation that comes in the same moment as the answer.
            async with asyncio.timeout(seconds):
                await waiting
        except TimeoutError:
            pass
        finally:
            self._waiting[name].discard(waiting)

    def _wake(self, name: str) -> None:
        for waiting in self._waiting[name]:
            if not waiting.done():
                waiting.set_result(None)
