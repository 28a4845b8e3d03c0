"""The log's lines about what clients do wrong: one for the first fault of a kind, then one a minute with their number.

A client can repeat a fault thousands of times a second, and must not fill the disk with it.

    quiet -> a fault: a line -> counting, for `seconds` -> there were more: a line with their number -> counting
                                                         -> there was none -> quiet
"""

from __future__ import annotations

import asyncio
import logging

SECONDS = 60.0
"""The seconds between two lines about one kind of fault."""


class ClientFaults:
    """Logs the faults of all clients of a server. seconds: see SECONDS."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._more: dict[str, int] = {}

    def log(self, logger: logging.Logger, message: str) -> None:
        """Log a fault, or count it. message: the same for every fault of the kind."""
        if message in self._more:
            self._more[message] += 1
        else:
            logger.warning(message)
            self._count(logger, message)

    def _count(self, logger: logging.Logger, message: str) -> None:
        self._more[message] = 0
        asyncio.get_running_loop().call_later(self._seconds, self._sum_up, logger, message)

    def _sum_up(self, logger: logging.Logger, message: str) -> None:
        more = self._more.pop(message)
        if more:
            logger.warning("%s (%d more within %g s)", message, more, self._seconds)
            self._count(logger, message)
