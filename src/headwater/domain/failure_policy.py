"""Failure policies: what a consumer does after a function of the app failed on an event.

    View(..., on_failure=Retry(times=5, then=Park()))

Only errors of the app's functions count as failures. A fault of the database is waited out: it is neither counted nor
does it park a key.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from headwater.errors import DefinitionError


@dataclass(frozen=True)
class Park:
    """Set the event aside as a dead letter until an operator acts. Later events of its key wait behind it, in order.
    All other keys go on.

        View(AccountView, fold, on_failure=Park())    # no retry
    """


@dataclass(frozen=True)
class Stop:
    """Stop the whole projection before the event, and go on once the fold succeeds. Readiness reports the projection as
    late meanwhile. For read models in which no key may overtake another.

        View(LedgerView, fold, on_failure=Retry(times=5, then=Stop()))
    """


@dataclass(frozen=True)
class Retry:
    """Retry with exponential backoff, then park or stop.

        Reactor("mail", send, on_failure=Retry(times=20, first=1.0, longest=600.0))

    times: the retries after the first failure. first: the first pause, in seconds; each next one is twice as long.
    longest: the longest pause, in seconds. Jitter shortens each pause by up to half, so that keys that failed together
    are not retried together.

    then: what follows the last retry. With `Park()` the key is set aside between the attempts too, and all other keys
    go on. With `Stop()` everything waits.

    Raises:
        DefinitionError: a number is out of range.
    """

    times: int = 5
    first: float = 0.2
    longest: float = 30.0
    then: Park | Stop = Park()

    def __post_init__(self) -> None:
        if self.times < 0 or not 0 < self.first <= self.longest:
            raise DefinitionError(f"{self}: times must be at least 0, and first must be above 0 and at most longest")

    def pause(self, attempts: int, chance: Callable[[], float] = random.random) -> float | None:
        """Return the seconds to wait after the given number of failed attempts (the first one counts), or None if no
        retry is left. chance: returns a number from 0 to 1, for the jitter."""
        if attempts > self.times:
            return None
        return min(self.longest, self.first * 2.0 ** min(attempts - 1, 60)) * (0.5 + 0.5 * chance())


OnFailure: TypeAlias = Retry | Park | Stop

DEFAULT_POLICY: OnFailure = Retry()
"""The policy of a view that declares none."""


def policy_of(declared: OnFailure) -> Retry:
    """Return the policy as a `Retry`. A bare `Park()` or `Stop()` becomes one without retries."""
    return declared if isinstance(declared, Retry) else Retry(times=0, then=declared)
