"""Running a reactor: its function is called at least once for each of its events, in order within a key.

    an event: calling -> returned -> its batch's checkpoint is committed
                      -> raised, or exceeded its time limit -> its key is parked -> retried when due -> calling
                                                            -> no retry is left: waits for an operator

If the process ends between a call and the commit, the call is repeated with the same idempotency key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from uuid import UUID

from headwater.consumers.checkpoint import Generation
from headwater.consumers.consumer import Consumer, EventHandler
from headwater.consumers.loop import LoopSettings, Ports
from headwater.consumers.parked_keys import ParkedKeys
from headwater.domain.failure_policy import policy_of
from headwater.domain.messages import Event, Recorded
from headwater.domain.reactor import Reactor
from headwater.errors import ReactionFailed
from headwater.logs import handling
from headwater.telemetry import Progress

REACTOR_LOOP = LoopSettings(batch=100, at_once=16)
"""A reaction is a call to another system: fewer run concurrently, and fewer are repeated after a crash."""


class _ReactorHandler(EventHandler):
    """Calls the reactor's function for each event."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._events = frozenset(reactor.events)

    def keys_of(self, event: Recorded[Event]) -> Sequence[UUID]:
        """Return the key in whose order the event is taken."""
        return (self._reactor.order_of(event),) if type(event.data) in self._events else ()

    async def take(self, key: UUID, event: Recorded[Event]) -> None:
        """React to an event.

        Raises:
            ReactionFailed: the function raised, or took too long.
        """
        if type(event.data) not in self._events:
            return  # parked by another version of the app, whose reactor took this event
        seconds = self._reactor.within.total_seconds()
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                with handling(event.correlation_id, self._reactor.unit):
                    await self._reactor.react(event, self._reactor.key_for(event))
        except TimeoutError as error:
            if not limit.expired():
                raise ReactionFailed(error) from error
            late = TimeoutError(f"it took longer than {seconds:g} s")
            raise ReactionFailed(late.with_traceback(_stuck_at(error).__traceback__)) from error
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            # The function awaited something that was cancelled. This task was not cancelled and goes on.
            failure = RuntimeError("what it waited for was cancelled")
            raise ReactionFailed(failure.with_traceback(error.__traceback__)) from error
        except Exception as error:
            raise ReactionFailed(error) from error


class ReactorRunner:
    """Runs one reactor, under one lease."""

    def __init__(self, ports: Ports, reactor: Reactor, settings: LoopSettings = REACTOR_LOOP) -> None:
        self.handler: EventHandler = _ReactorHandler(reactor)
        self.parked = ParkedKeys(policy_of(reactor.on_failure), reactor.unit)
        self._consumer = Consumer(
            ports,
            self.handler,
            self.parked,
            settings,
            name=reactor.unit,
            types=ports.log.stored_names(reactor.events),
        )

    @property
    def progress(self) -> Progress:
        """Progress along the log."""
        return self._consumer.progress

    async def run(self, generation: Generation, well: Callable[[], None] = lambda: None) -> None:
        """React until cancelled, or until the lease is lost. Runs under a supervisor."""
        await self._consumer.run(generation, well)


def _stuck_at(error: TimeoutError) -> BaseException:
    """Return the exception whose traceback shows where the function was when its time ended."""
    return error.__cause__ or error


def _is_cancelled() -> bool:
    """True if this task itself is asked to stop."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
