"""The keys that a consumer has set aside after failures, while its process runs."""

from __future__ import annotations

import asyncio
from uuid import UUID

from headwater.consumers.dead_letters import DeadLetter, described
from headwater.domain.failure_policy import Retry
from headwater.telemetry import Progress


class ParkedKeys:
    """The parked keys of one consumer, and the letters about them that it has not written yet.

    The consumer's loop reads and writes it; what works beside the loop parks a key with `set_aside`.

    keys: the parked keys. retrying: those of them that are tried again now. letters: to be written with the next
    commit. changed: set when the loop has to look.
    """

    def __init__(self, policy: Retry) -> None:
        self.policy = policy
        self.progress = Progress()
        self.keys: set[UUID] = set()
        self.retrying: set[UUID] = set()
        self.letters: list[DeadLetter] = []
        self.changed = asyncio.Event()

    def is_parked(self, key: UUID) -> bool:
        """True if events of the key have to wait. A key that is tried again is not parked, so that it can go on."""
        return key in self.keys and key not in self.retrying

    def set_aside(self, key: UUID, position: int, error: Exception, attempts: int) -> None:
        """Park a key for something that failed beside the reading of the log. The next commit writes it."""
        self.letters.append(self.letter(key, position, error, attempts))
        self.retrying.discard(key)
        self.replace(self.keys | {key})
        self.changed.set()

    def replace(self, keys: set[UUID]) -> None:
        """Replace the parked keys."""
        self.keys = keys
        self.progress.parked_keys = len(keys)

    def letter(self, key: UUID, position: int, error: Exception, attempts: int) -> DeadLetter:
        """Return the dead letter of a failure, with the pause before the next attempt."""
        text, digest = described(error)
        return DeadLetter(key, position, attempts, text, digest, self.policy.pause(attempts))
