"""The ids and the clock of a seed, which are the same on every run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TypeAlias
from uuid import UUID

from headwater.domain.messages import Command
from headwater.ids import derived_id

_IDS = UUID("3d2b1f0e-8c57-5b1a-9e64-7a1c0f5d2b93")

Item: TypeAlias = tuple[Command, str | None]
"""A command of a seed, and its actor."""


class Seed:
    """The source of ids and time for a seed, which `headwater seed MODULE` gives to the module's function `seed`.

        def seed(seed: Seed) -> Iterator[tuple[Command, str | None]]:
            ada = seed.id("ada")
            yield RegisterUser(user_id=ada, email="ada@example.org", name="Ada"), "registrar"
            seed.advance(timedelta(days=1))
            yield ChangeEmail(user_id=ada, email="lovelace@example.org"), "user ada"

    now: `Context.now` of the next command, in UTC. It begins at 2026-01-01T00:00:00Z, and only `advance` moves it.
    """

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def id(self, name: str) -> UUID:
        """Return the id of a name: the same in every seed, on every run."""
        return derived_id(_IDS, name)

    def advance(self, by: timedelta) -> None:
        """Advance the time of the commands that follow.

        Raises:
            ValueError: `by` is negative.
        """
        if by < timedelta(0):
            raise ValueError(f"time does not go back by {-by}")
        self.now += by


SeedFunction: TypeAlias = Callable[[Seed], Iterator[Item] | AsyncIterator[Item]]
"""Yields the items of a seed, as a generator or an async generator. An item is decided before the next is asked for."""
