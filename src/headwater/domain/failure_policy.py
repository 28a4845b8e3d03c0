"""What becomes of a key whose fold failed, as a value: `View(..., on_failure=Retry(times=5, then=Park()))`.

Only what a fold did wrong counts. A fault of the database is waited out, never counted and never parked.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from headwater.errors import DefinitionError


@dataclass(frozen=True)
class Park:
    """Set the event aside as a dead letter until a person acts. Later events of its key queue up behind it, in order;
    all other keys go on."""


@dataclass(frozen=True)
class Stop:
    """The whole projection stands still before the event, which shows in readiness, and goes on once the fold succeeds.
    For read models in which no key may overtake another."""


@dataclass(frozen=True)
class Retry:
    """Try again `times` times, and only then park or stop.

    The first pause is `first` seconds, each next one twice as long, `longest` at most; each is shortened by chance, to
    half at most, so that what failed together does not return together. With `then=Park()` the key is set aside
    meanwhile and all others go on; with `then=Stop()` everything waits.

    Raises:
        DefinitionError: a number that makes no sense.
    """

    times: int = 5
    first: float = 0.2
    longest: float = 30.0
    then: Park | Stop = Park()

    def __post_init__(self) -> None:
        if self.times < 0 or not 0 < self.first <= self.longest:
            raise DefinitionError(f"{self}: times must not be negative, and first above 0 and at most longest")

    def pause(self, attempts: int, chance: Callable[[], float] = random.random) -> float | None:
        """Seconds to wait after so many failed attempts, the first one included; None when there is no further one.
        chance: a number from 0 to 1."""
        if attempts > self.times:
            return None
        return min(self.longest, self.first * 2.0 ** min(attempts - 1, 60)) * (0.5 + 0.5 * chance())


OnFailure: TypeAlias = Retry | Park | Stop

USUALLY: OnFailure = Retry()
"""What a view does that declares nothing."""


def policy_of(declared: OnFailure) -> Retry:
    """As a `Retry`: a bare `Park()` or `Stop()` means that there is no retry before it."""
    return declared if isinstance(declared, Retry) else Retry(times=0, then=declared)
