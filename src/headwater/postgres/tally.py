"""The common part of the log lines about an outage: which parts failed and how often, the reason, and the time."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

LINE_EVERY = timedelta(minutes=1)


class Tally:
    """Counts the failures of parts, and other numbers, between two lines that show them."""

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()
        self.numbers: Counter[str] = Counter()

    def clear(self) -> None:
        """Begin to count anew."""
        self.failures.clear()
        self.numbers.clear()

    def __str__(self) -> str:
        parts = [f"{part} ({number:,})" for part, number in sorted(self.failures.items())]
        numbers = [f"{what}: {number:,}" for what, number in sorted(self.numbers.items()) if number]
        return "; ".join([f"failures since: {', '.join(parts)}", *numbers])


def said(error: BaseException) -> str:
    """Return an error as a line shows it: its type and its message, without line breaks."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def took(began: datetime, now: datetime) -> str:
    """Return the time between two moments, such as `12.3 s` or `2 min 5 s`."""
    seconds = (now - began).total_seconds()
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
