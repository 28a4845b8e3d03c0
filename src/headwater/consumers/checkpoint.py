"""Where a consumer of the log stands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Standing:
    """Where a generation stands: the table that it writes, and up to which position that is complete."""

    generation: int
    table: str
    position: int
    fence: int
    fingerprint: str
