"""What a process has measured: plain numbers that the core counts up, and that an exporter reads when it is asked.

Nothing here knows who reads it. The core's other numbers stand where they arise: `Appender.counts`,
`Progress` of those that follow the log, and `standings` for what the database knows of every projection.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 50_000)

SENT_AT_MOST = 10_000
"""Sent changes whose age is still to be found out: beyond, the oldest are not counted."""


class Distribution:
    """How often values fell up to each bound, the bounds themselves included; the last count is of those beyond."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, several times if so many had it."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def mean(self) -> float:
        """Of all values; 0 when there was none."""
        count = sum(self.counts)
        return self.total / count if count else 0.0

    def ages(self, moments: Sequence[datetime], now: float) -> None:
        """Count the seconds from each moment to now, a Unix time. Neighbours that are alike are counted together."""
        start, last = 0, len(moments) - 1
        for place, moment in enumerate(moments):
            if place == last or moments[place + 1] != moment:
                # Another machine's clock may be ahead of ours: nothing takes less than no time.
                self.observe(max(0.0, now - moment.timestamp()), place + 1 - start)
                start = place + 1


class Telemetry:
    """A serving process's numbers, beside those of its appender."""

    def __init__(self) -> None:
        self.operations: dict[tuple[str, str], Distribution] = {}
        self.sent = Distribution(SECONDS)
        self.messages: dict[str, int] = {}
        self.followers = 0
        self.settling = asyncio.Lock()
        self._unread: deque[tuple[int, float, float]] = deque(maxlen=SENT_AT_MOST)

    def operated(self, kind: str, outcome: str, seconds: float) -> None:
        """A GraphQL operation had its result. kind: query, mutation, subscription (until it is open) or unknown;
        outcome: ok, errors or refused."""
        taken = self.operations.get((kind, outcome))
        if taken is None:
            taken = self.operations[kind, outcome] = Distribution(SECONDS)
        taken.observe(seconds)

    def handed_over(self, name: str, position: int, opened: float) -> None:
        """A change, the last of it at a position, was taken by the socket of a subscription that was opened at a Unix
        time. Its age is found out later: rows do not know when their events were recorded."""
        self.messages[name] = self.messages.get(name, 0) + 1
        self._unread.append((position, time.time(), opened))

    def take_unread(self) -> list[tuple[int, float, float]]:
        """Position, time of sending and of opening of what was handed over since the last call."""
        unread = list(self._unread)
        self._unread.clear()
        return unread

    def settle(self, unread: Sequence[tuple[int, float, float]], recorded: dict[int, datetime]) -> None:
        """Count the ages of sent changes. What was recorded before its subscription was opened was not late."""
        for position, sent, opened in unread:
            moment = recorded.get(position)
            if moment is not None and (seconds := moment.timestamp()) >= opened:
                self.sent.observe(max(0.0, sent - seconds))


@dataclass
class Progress:
    """What one who follows the log has done since the start: a projection, a saga, a reactor. parked_keys: those set
    aside now, while it holds the lease; retries: attempts after a first failure. sizes: events in a batch. delays:
    seconds from an event's recording to the commit."""

    position: int = 0
    events: int = 0
    batches: int = 0
    displaced: int = 0
    retries: int = 0
    parked_keys: int = 0
    sizes: Distribution = field(default_factory=lambda: Distribution(SIZES))
    delays: Distribution = field(default_factory=lambda: Distribution(SECONDS))

    def passed(self, recorded: Sequence[datetime], position: int) -> None:
        """A batch is committed, up to a position; recorded: when each of its events was."""
        self.position = position
        self.events += len(recorded)
        self.batches += 1
        if recorded:
            self.sizes.observe(len(recorded))
            self.delays.ages(recorded, time.time())
