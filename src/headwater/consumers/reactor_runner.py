"""Running a reactor: each of its events is given to its function, at least once, in the order of its key.

    an event: reacting -> done -> passed, with the checkpoint of its batch
                 \\-> raised, or took too long -> set aside -> due -> reacting ... -> parked until a person acts

What is done and not yet passed when the process ends is given again, with the same idempotency key.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

from headwater.consumers.checkpoint import Generation
from headwater.consumers.consumer import Follower
from headwater.domain.failure_policy import policy_of
from headwater.domain.messages import Event, Recorded
from headwater.domain.reactor import Reactor
from headwater.errors import ReactionFailed
from headwater.eventstore.log import Log
from headwater.eventstore.positions import Positions
from headwater.postgres.database import Connection, Database
from headwater.telemetry import Progress


class Reacting:
    """Runs one reactor, under one lease.

    batch: events between two checkpoints, at most, which is how many may be given again. at_once: reactions under way
    beside each other, and as many again of events that were set aside. For the others see `Follower`.
    """

    def __init__(
        self,
        database: Database,
        log: Log,
        reactor: Reactor,
        positions: Positions,
        *,
        batch: int = 100,
        at_once: int = 16,
        poll: float = 1.0,
        lease: float = 6.0,
    ) -> None:
        self._reactor = reactor
        self._events = frozenset(reactor.events)
        self._follower = Follower(
            database,
            log,
            positions,
            self,
            name=reactor.unit,
            types=log.stored_names(reactor.events),
            policy=policy_of(reactor.on_failure),
            batch=batch,
            at_once=at_once,
            poll=poll,
            lease=lease,
        )

    @property
    def progress(self) -> Progress:
        """How far it has followed the log."""
        return self._follower.progress

    async def run(self, standing: Generation, well: Callable[[], None] = lambda: None) -> None:
        """React until cancelled, or until the lease is another's. Runs under a supervisor."""
        await self._follower.run(standing, well)

    # ----------------------------------------------------------------------------------------- as the follower's taker

    @asynccontextmanager
    async def begun(self) -> AsyncIterator[None]:
        """Nothing runs beside the follower."""
        yield

    def key_of(self, event: Recorded[Event]) -> UUID | None:
        """In whose order it is to be taken."""
        return self._reactor.order_of(event) if type(event.data) in self._events else None

    async def ready(self, keys: Collection[UUID]) -> None:
        """Nothing to prepare."""

    async def freed(self, keys: Collection[UUID]) -> None:
        """Nothing waits for it."""

    async def take(self, key: UUID, event: Recorded[Event]) -> None:
        """React to an event.

        Raises:
            ReactionFailed: the function raised, or took too long.
        """
        if type(event.data) not in self._events:
            return  # set aside by other code, which took it
        seconds = self._reactor.within.total_seconds()
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await self._reactor.react(event, self._reactor.key_for(event))
        except TimeoutError as error:
            if not limit.expired():
                raise ReactionFailed(error) from error
            late = TimeoutError(f"it took longer than {seconds:g} s")
            raise ReactionFailed(late.with_traceback(_stuck_at(error).__traceback__)) from error
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            # Of something that it waited for: this process was not told to stop, and goes on.
            itself = RuntimeError("what it waited for was cancelled")
            raise ReactionFailed(itself.with_traceback(error.__traceback__)) from error
        except Exception as error:
            raise ReactionFailed(error) from error

    async def look(self, events: Sequence[Recorded[Event]]) -> None:
        """Nothing is kept of what was taken."""

    async def write(self, connection: Connection, freed: Collection[UUID]) -> None:
        """The checkpoint is all there is to write."""

    def written(self) -> None:
        """Nothing waits for it."""


def _stuck_at(error: TimeoutError) -> BaseException:
    """What tells where a cancelled reaction stood."""
    return error.__cause__ or error


def _is_cancelled() -> bool:
    """Whether whoever owns this task has told it to stop."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
