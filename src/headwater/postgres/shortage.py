"""One log for a shortage of PostgreSQL, such as a full disk: a line when it begins, one a minute, one when it is over.

In a shortage PostgreSQL answers, but rejects what needs more room. Some statements fail and others do not, so that a
single success proves nothing: a shortage is over when no part of the process has met it for `QUIET`. Parts that failed
try again more often than that.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta

from headwater.clock import Clock
from headwater.postgres.tally import LINE_EVERY, Tally, said, took

logger = logging.getLogger(__name__)

QUIET = timedelta(seconds=30)
"""Three times the longest pause before a part tries again."""

LOOK_EVERY = 0.5
"""The seconds between two looks at what was reported."""


class Shortage:
    """Knows whether PostgreSQL lacks room for what this process writes. clock: of the lines' times."""

    def __init__(self, clock: Clock) -> None:
        self.tally = Tally()
        self._clock = clock
        self._reported = asyncio.Event()
        self._last: tuple[datetime, BaseException] | None = None

    @property
    def lasts(self) -> bool:
        """True from the first report until the line that says that it is over."""
        return self._last is not None

    def report(self, error: BaseException) -> None:
        """Take in that a part met the shortage. The caller counts it in `tally`."""
        self._last = self._clock.now(), error
        self._reported.set()

    async def run(self) -> None:
        """Log what is reported, until cancelled."""
        while True:
            await self._reported.wait()
            await self._wait_until_quiet()
            self.forget()

    def forget(self) -> None:
        """Drop what was reported."""
        self._reported.clear()
        self._last = None
        self.tally.clear()

    async def _wait_until_quiet(self) -> None:
        began = line = self._clock.now()
        met, error = self._met()
        logger.error("PostgreSQL has no room for writes (%s); every part of this process tries again", said(error))
        while self._clock.now() - met < QUIET:
            await asyncio.sleep(LOOK_EVERY)
            met, error = self._met()
            now = self._clock.now()
            if now - line >= LINE_EVERY:
                line = now
                logger.error(
                    "PostgreSQL has had no room for writes for %s (%s); %s",
                    took(began, now),
                    said(error),
                    str(self.tally),
                )
        logger.warning(
            "PostgreSQL has room again: no write was rejected for %.0f s, after %s in which some were; %s",
            *(QUIET.total_seconds(), took(began, met), str(self.tally)),
        )

    def _met(self) -> tuple[datetime, BaseException]:
        assert self._last is not None  # `run` waits for the first report
        return self._last
