"""Prints the steps of a start, one line each, with the seconds that each took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WIDTH = 40


class Steps:
    """Prints `  starting PostgreSQL ................. 1.2 s`: the name when a step begins, the seconds when it ends.

    Only one step runs at a time. Steps may begin in any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: float | None = None

    def begin(self, name: str) -> None:
        """End the step that runs, if any, and begin the next."""
        self.end()
        self._began = self._clock()
        print(f"  {name} ".ljust(WIDTH, "."), end=" ", flush=True)

    def end(self) -> None:
        """End the step that runs, if any."""
        if self._began is not None:
            print(f"{self._clock() - self._began:.1f} s", flush=True)
            self._began = None


@contextmanager
def reporting() -> Iterator[Steps]:
    """Print steps; the last one ends with the block, also when that fails or is interrupted."""
    steps = Steps()
    try:
        yield steps
    finally:
        steps.end()
