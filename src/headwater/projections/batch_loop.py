"""The loop that both kinds of projections run: the rows of a read model, and the tables of the app's own.

read -> advance -> read ...           a batch is handled and committed
  nothing to read -> wait -> read     until the log grows, a parked key is due or the poll interval ends
  halted -> pause -> read             what comes before the failure is committed; then the policy's pause
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from headwater.consumers.checkpoint import Checkpoint
from headwater.consumers.dead_letters import DeadLetters
from headwater.consumers.failure_log import FailureLog, Halted
from headwater.consumers.loop import LoopSettings, Ports
from headwater.domain.failure_policy import Retry
from headwater.domain.messages import Event, Recorded
from headwater.eventstore.epoch import WITNESSES
from headwater.eventstore.positions import LOG
from headwater.postgres.database import Connection
from headwater.telemetry import Progress

K = TypeVar("K")


class HaltedBefore(Halted):
    """A function of the app raised, and the projection halts before the event at `position`."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class BatchLoop(ABC, Generic[K]):
    """Reads the log in batches, and looks at parked keys when they are due. K: the type of a key.

    name: of the unit. types: the stored names of the events that are read. policy: for a failure that halts.
    sleep: waits between the attempts after such a failure. progress: along the log.
    """

    progress: Progress
    _failures: FailureLog
    _checkpoint: Checkpoint
    _letters: DeadLetters[K]

    def __init__(
        self,
        ports: Ports,
        settings: LoopSettings,
        policy: Retry,
        *,
        name: str,
        types: Sequence[str],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = ports.database
        self._log = ports.log
        self.positions = ports.positions
        self._settings = settings
        self._policy = policy
        self._name = name
        self._types = types
        self._sleep = sleep
        self._look_at = 0.0
        """The time of the event loop at which parked keys are looked at again."""

    @abstractmethod
    def _has_parked(self) -> bool:
        """True if a key is parked."""

    @abstractmethod
    async def _advance(self, position: int, events: Sequence[Recorded[Event]], reached: int) -> int:
        """Handle a batch and commit it. Returns the new position. Raises HaltedBefore; nothing is committed then."""

    @abstractmethod
    async def _retry_parked(self) -> None:
        """Handle the dead letters of the keys that are due, and commit."""

    async def _follow(self, position: int, well: Callable[[], None]) -> None:
        attempts = 0
        while True:
            alarms = self.positions.alarms
            if self._has_parked() and asyncio.get_running_loop().time() >= self._look_at:
                await self._retry_parked()
            known, epoch = self.positions.known(LOG), self.positions.epochs.current
            events, reached = await self._log.read_on(position, types=self._types, limit=self._settings.batch)
            if reached <= position:
                self.positions.correct(LOG, known, reached)
                well()
                await self._wait(position, alarms)
                continue
            try:
                position = await self._advance(position, events, reached)
                self.positions.epochs.remember(events[-WITNESSES:], epoch)
                attempts = 0
                well()  # now: a log that keeps growing may not let the loop catch up for long
            except HaltedBefore as failure:
                if failure.position - 1 > position:  # what comes before the failure is committed
                    before = [event for event in events if event.position < failure.position]
                    position = await self._advance(position, before, failure.position - 1)
                    attempts = 0
                attempts += 1
                await self._pause(failure, attempts)

    async def _wait(self, position: int, alarms: int) -> None:
        """Wait until the log grows, or the poll interval ends. alarms: see `Positions.alarms`."""
        patience = self._settings.poll
        if self._has_parked():
            patience = max(0.0, min(patience, self._look_at - asyncio.get_running_loop().time()))
        await self.positions.moved(LOG, position, patience, alarms)
        if self.positions.known(LOG) <= position:
            self._look_at = 0.0  # the interval has ended, or an operator rang for a retry

    async def _pause(self, failure: HaltedBefore, attempts: int) -> None:
        """Log and record the failure, and wait before the next attempt, if the policy has one; all keys wait."""
        self.progress.failures += 1
        cause = failure.__cause__ or failure
        self._failures.log(cause, failure.position, f"it halts before the event at position {failure.position}")
        await self._checkpoint.halt(failure)
        pause = self._policy.pause(attempts)
        if pause is None:
            raise failure
        self.progress.retries += 1
        await self._sleep(pause)

    async def _due_keys(self, connection: Connection) -> list[K]:
        """Return the parked keys that are due. If there are none, note when to look again."""
        keys, next_due = await self._letters.due(connection)
        if not keys:
            pause = self._settings.poll if next_due is None else min(self._settings.poll, next_due)
            self._look_at = asyncio.get_running_loop().time() + pause
        return keys

    def _report(self, events: Sequence[Recorded[Event]], reached: int) -> int:
        """Count a committed batch, and say how far the projection is. Returns that position."""
        self.progress.passed([event.recorded_at for event in events], reached)
        self.positions.report(self._name, reached)
        return reached
