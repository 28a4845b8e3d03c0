"""The positions of the log and of each projection, as far as this process has heard, and waiting for one to move.

A position may arrive late or never, so a waiting task also polls the database. A position that was heard is almost
always correct, because positions only grow. There are two exceptions: a notification can be forged, and the log or a
checkpoint can go back under a running process after a restore, a failover, or a crash of PostgreSQL that loses the last
commits of projections. So positions are forgotten with the connection that they were heard on, and a task that reads a
lower position from the database corrects them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from headwater.eventstore.epoch import Epoch, Epochs

LOG = "log"
"""The name of the log among the positions."""


def generation_of(name: str) -> str:
    """Return the name under which the number of a projection's live generation is announced. Like a position, it only
    grows."""
    return f"{name} generation"


class Positions:
    """Positions by name (`LOG`, or a projection), with the tasks that wait for them.

    epochs: of the log. The positions are of the current one.
    """

    def __init__(self) -> None:
        self.epochs = Epochs()
        self._known: defaultdict[str, int] = defaultdict(int)
        self._waiting: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self._alarms = 0
        self.epochs.on_change(self._begin_again)

    @property
    def alarms(self) -> int:
        """The number of calls of `wake_everyone`.

        A task that reads the database and then waits takes this number before it reads, and passes it to `moved`: then
        it does not miss an alarm between the two.
        """
        return self._alarms

    @property
    def waiting(self) -> int:
        """The number of tasks that wait in `moved`."""
        return sum(map(len, self._waiting.values()))

    def known(self, name: str) -> int:
        """Return the greatest position that was heard, or 0. It may be too great: see the module."""
        return self._known[name]

    def report(self, name: str, position: int) -> None:
        """Record that a position was reached, and wake the tasks that wait for it."""
        if position > self._known[name]:
            self._known[name] = position
            self._wake(name)

    def correct(self, name: str, heard: int, found: int) -> None:
        """Lower a position that the database contradicts.

        heard: the known position before the database was read. found: the position in the database. Without the
        correction, a task that waits for a position beyond `found` would be woken again and again for nothing.
        """
        if found < heard == self._known[name]:
            self._known[name] = found

    def forget(self) -> None:
        """Forget all positions: the connection that they were heard on is lost, or new."""
        self._known.clear()

    def _begin_again(self, epoch: Epoch) -> None:
        self.forget()
        self.wake_everyone()

    def wake_everyone(self) -> None:
        """Wake all waiting tasks, so that each reads the database: a notification may have been missed."""
        self._alarms += 1
        for name in list(self._waiting):
            self._wake(name)

    async def moved(self, name: str, after: int, seconds: float, alarms: int | None = None) -> None:
        """Return when a position beyond `after` is heard, when all tasks are woken, or after so many seconds.

        alarms: the value of `alarms` before the caller read the database. If it has changed, return at once.
        """
        if self._known[name] > after or alarms not in (None, self._alarms):
            return
        waiting = asyncio.get_running_loop().create_future()
        self._waiting[name].add(waiting)
        try:
            # Not wait_for: before Python 3.12 it loses a cancellation that arrives at the same moment as the result.
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
