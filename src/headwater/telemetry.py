"""The measurements of a process: plain numbers that the core counts and an exporter reads.

The core knows no exporter. Other numbers are kept where they are counted: `Appender.counts`, `Progress` of each
consumer, and `standings` for what the database knows of every projection.
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

MAX_UNMEASURED = 10_000
"""Sent changes whose age is not known yet. Beyond that number the oldest are not measured."""


class Distribution:
    """A histogram: the number of values up to and including each bound; the last count is of values beyond."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value a number of times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def mean(self) -> float:
        """The mean of all values; 0 when there is none."""
        count = sum(self.counts)
        return self.total / count if count else 0.0

    def ages(self, moments: Sequence[datetime], now: float) -> None:
        """Count the seconds from each moment to now, a Unix time. Equal neighbours are counted in one step."""
        start, last = 0, len(moments) - 1
        for place, moment in enumerate(moments):
            if place == last or moments[place + 1] != moment:
                # The other machine's clock may be ahead: an age is never negative.
                self.observe(max(0.0, now - moment.timestamp()), place + 1 - start)
                start = place + 1


class Telemetry:
    """The measurements of a serving process, beside those of its appender."""

    def __init__(self) -> None:
        self.operations: dict[tuple[str, str], Distribution] = {}
        self.sent = Distribution(SECONDS)
        self.messages: dict[str, int] = {}
        self.followers = 0
        self.settling = asyncio.Lock()
        self._unread: deque[tuple[int, float, float]] = deque(maxlen=MAX_UNMEASURED)

    def operated(self, kind: str, outcome: str, seconds: float) -> None:
        """Count a finished GraphQL operation.

        kind: query, mutation, subscription (until it is open) or unknown. outcome: ok, errors or refused.
        """
        taken = self.operations.get((kind, outcome))
        if taken is None:
            taken = self.operations[kind, outcome] = Distribution(SECONDS)
        taken.observe(seconds)

    def handed_over(self, name: str, position: int, opened: float) -> None:
        """Count a change that was handed to the socket of a subscription.

        Its age is measured later, by `settle`: rows do not know when their events were recorded. position: of the
        change's last event. opened: when the subscription was opened, as a Unix time.
        """
        self.messages[name] = self.messages.get(name, 0) + 1
        self._unread.append((position, time.time(), opened))

    def take_unread(self) -> list[tuple[int, float, float]]:
        """Return position, time of sending and time of opening of each change since the last call."""
        unread = list(self._unread)
        self._unread.clear()
        return unread

    def settle(self, unread: Sequence[tuple[int, float, float]], recorded: dict[int, datetime]) -> None:
        """Count the ages of sent changes, without those that were recorded before their subscription was opened."""
        for position, sent, opened in unread:
            moment = recorded.get(position)
            if moment is not None and (seconds := moment.timestamp()) >= opened:
                self.sent.observe(max(0.0, sent - seconds))


@dataclass
class Progress:
    """What a consumer has done in this process since the start.

    displaced: batches that were discarded because another process had moved the checkpoint. failures: of the app's
    functions on an event. retries: attempts after a failure. parked_keys: keys that are parked now, while this process
    holds the lease. sizes: events in a batch. delays: seconds from the recording of an event to its commit.
    """

    position: int = 0
    events: int = 0
    batches: int = 0
    displaced: int = 0
    failures: int = 0
    retries: int = 0
    parked_keys: int = 0
    sizes: Distribution = field(default_factory=lambda: Distribution(SIZES))
    delays: Distribution = field(default_factory=lambda: Distribution(SECONDS))

    def passed(self, recorded: Sequence[datetime], position: int) -> None:
        """Count a committed batch. recorded: when each of its events was recorded. position: the new checkpoint."""
        self.position = position
        self.events += len(recorded)
        self.batches += 1
        if recorded:
            self.sizes.observe(len(recorded))
            self.delays.ages(recorded, time.time())
