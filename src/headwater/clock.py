"""Clocks: the current time, and waiting for a time. A clock is injected, so that a test can advance it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Protocol

LONGEST_SLEEP = timedelta(minutes=1)
"""The clock may be set during a sleep, so it is read again after this time."""


class Clock(Protocol):
    """Wall-clock time, in UTC."""

    def now(self) -> datetime:
        """Return the current time."""
        ...

    async def sleep_until(self, moment: datetime) -> None:
        """Return at that moment; at once if it has passed."""
        ...


class SystemClock:
    """The clock of the machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep_until(self, moment: datetime) -> None:
        while (left := moment - self.now()) > timedelta(0):  # noqa: ASYNC110 - no event signals the passing of time
            await asyncio.sleep(min(left, LONGEST_SLEEP).total_seconds())


class VirtualClock:
    """A clock that stands still until a test advances it."""

    def __init__(self, start: datetime) -> None:
        self._now = start
        self._moved = asyncio.Condition()

    def now(self) -> datetime:
        return self._now

    async def advance(self, by: timedelta) -> None:
        """Advance the clock, and wake the tasks whose moment has come."""
        async with self._moved:
            self._now += by
            self._moved.notify_all()

    async def sleep_until(self, moment: datetime) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self._now >= moment)
