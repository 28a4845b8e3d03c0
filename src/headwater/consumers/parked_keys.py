"""The parked keys of a consumer, in memory."""

from __future__ import annotations

import asyncio
from uuid import UUID

from headwater.consumers.dead_letters import DeadLetter, described
from headwater.consumers.failure_log import FailureLog
from headwater.domain.failure_policy import Retry
from headwater.telemetry import Progress


class ParkedKeys:
    """The parked keys of one consumer, and their letters that are not written yet.

    The consumer's loop maintains them. A task beside the loop parks a key with `set_aside`.

    name: of the unit. failures: its log. keys: the parked keys. retrying: those of them that are being retried.
    letters: written with the next commit. changed: set when the loop has to look at them.
    """

    def __init__(self, policy: Retry, name: str) -> None:
        self.policy = policy
        self.progress = Progress()
        self.failures = FailureLog(name)
        self.keys: set[UUID] = set()
        self.retrying: set[UUID] = set()
        self.letters: list[DeadLetter[UUID]] = []
        self.changed = asyncio.Event()

    def is_parked(self, key: UUID) -> bool:
        """True if the key's work has to wait. A key that is being retried does not."""
        return key in self.keys and key not in self.retrying

    def set_aside(self, key: UUID, position: int, error: Exception, attempts: int) -> None:
        """Park a key after a failure beside the loop. The loop writes the letter with its next commit."""
        self.letters.append(self.letter(key, position, error, attempts))
        self.retrying.discard(key)
        self.replace(self.keys | {key})
        self.changed.set()

    def replace(self, keys: set[UUID]) -> None:
        """Replace the parked keys."""
        self.keys = keys
        self.progress.parked_keys = len(keys)

    def letter(self, key: UUID, position: int, error: Exception, attempts: int) -> DeadLetter[UUID]:
        """Return the dead letter of a failure, with the pause before the next attempt. Logs and counts the failure."""
        self.progress.failures += 1
        self.failures.log(error, key, f"the event at position {position} failed, and its key {key} is parked")
        text, digest = described(error)
        return DeadLetter(key, position, attempts, text, digest, self.policy.pause(attempts))
