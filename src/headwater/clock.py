"""What time it is, and waiting for a time: injected, so that a test moves it by hand."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Protocol

LONGEST_SLEEP = timedelta(minutes=1)
"""The clock may be set while one sleeps: look again now and then."""


class Clock(Protocol):
    """Wall-clock time, in UTC."""

    def now(self) -> datetime:
        """This moment."""
        ...

    async def sleep_until(self, moment: datetime) -> None:
        """Return at that moment, at once when it has passed."""
        ...


class SystemClock:
    """The machine's."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep_until(self, moment: datetime) -> None:
        while (left := moment - self.now()) > timedelta(0):  # noqa: ASYNC110 - nobody tells when time has passed
            await asyncio.sleep(min(left, LONGEST_SLEEP).total_seconds())


class VirtualClock:
    """One that stands still until a test moves it."""

    def __init__(self, start: datetime) -> None:
        self._now = start
        self._moved = asyncio.Condition()

    def now(self) -> datetime:
        return self._now

    async def advance(self, by: timedelta) -> None:
        """Let so much time pass, and wake those whose moment has come."""
        async with self._moved:
            self._now += by
            self._moved.notify_all()

    async def sleep_until(self, moment: datetime) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self._now >= moment)
