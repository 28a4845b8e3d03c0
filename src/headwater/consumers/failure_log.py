"""The log's lines about failures of the app's functions. No traceback is written again and again.

    a key fails for a cause  -> an ERROR with the traceback and the position
    the same key and cause   -> counted: one line a minute with the number, while there are any
    more keys, same cause    -> the first KEYS each have their own ERROR, the others are counted

A cause is an error's type and place: the hash that `dead_letters.described` returns. Retries of a key, and a faulty
function that fails on every key of the log, are the same few lines.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass, field

from headwater.consumers.dead_letters import described
from headwater.errors import CodeFailed, HeadwaterError
from headwater.postgres.tally import said

logger = logging.getLogger(__name__)

SECONDS = 60.0
KEYS = 10
"""Keys with an ERROR of their own for each cause."""

CAUSES = 1000
"""Causes that are remembered. Beyond that number the one that failed the longest ago is forgotten."""


class Halted(HeadwaterError):
    """The base of errors with which a unit halts before an event. A `FailureLog` has logged it, so no other line need
    be written when its task ends."""


@dataclass(slots=True)
class _Cause:
    """keys: those that were logged. more: failures since the last line. latest: the last of them, in words."""

    keys: set[object] = field(default_factory=set)
    more: int = 0
    latest: str = ""


class FailureLog:
    """Logs the failures of one unit's functions. name: the unit, as its lines begin. seconds: see SECONDS."""

    def __init__(self, name: str, seconds: float = SECONDS) -> None:
        self._name = name
        self._seconds = seconds
        self._causes: OrderedDict[str, _Cause] = OrderedDict()

    def log(self, error: BaseException, key: object, what: str) -> None:
        """Log or count a failure. key: what failed. what: the failure in words, with the position of the event."""
        _, digest = described(error)
        cause = self._causes.setdefault(digest, _Cause())
        self._causes.move_to_end(digest)
        if len(self._causes) > CAUSES:
            self._causes.popitem(last=False)
        if key not in cause.keys and len(cause.keys) < KEYS:
            cause.keys.add(key)
            failed = error.error if isinstance(error, CodeFailed) else error
            logger.error("%s: %s: %s", self._name, what, said(failed), exc_info=failed)
            return
        if not cause.more:
            asyncio.get_running_loop().call_later(self._seconds, self._sum_up, cause)
        cause.more += 1
        cause.latest = f"{what}: {said(error)}"

    def _sum_up(self, cause: _Cause) -> None:
        failures = "1 more failure" if cause.more == 1 else f"{cause.more:,} more failures"
        logger.error(
            "%s: %s of the same cause within %g s, the last one: %s",
            *(self._name, failures, self._seconds, cause.latest),
        )
        cause.more = 0
