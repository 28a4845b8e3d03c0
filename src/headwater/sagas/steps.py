"""Steps: the commands of a saga's instances, each issued until its outcome is recorded.

    issuing -> accepted or refused -> recorded -> the next step
            -> its deadline has passed, or it is withdrawn -> recorded, unless it was accepted -> the next step
            -> the app's code raised -> issued again after a pause -> no retry is left: the key is parked

The log has an accepted command under its command id. A refusal or a timeout is recorded under the same id. A process
that issues the command again, after a crash or concurrently, therefore finds its outcome.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from headwater.commands.dispatcher import Accepted, Dispatcher, Origin
from headwater.domain.class_keywords import replace
from headwater.domain.messages import Refusal
from headwater.domain.saga_fold import input_of, reaction_to, read_command
from headwater.domain.saga_records import (
    SagaHandledEvent,
    SagaRecord,
    SagaStepConfirmed,
    SagaStepRefused,
    SagaStepTimedOut,
    SagaTimerFired,
)
from headwater.domain.saga_state import ForwardStep, Phase, SagaInstance, Step, UndoStep
from headwater.errors import CommandIdReused
from headwater.eventstore.epoch import MemoryOutdated
from headwater.ids import internal_id
from headwater.logs import HANDLED
from headwater.postgres import queries
from headwater.postgres.database import PASSING, Database
from headwater.sagas.instances import Changed, Conducted, Entry, Held, Instances, RecordIdTaken
from headwater.supervisor import backoff

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)

RESUMED_AT_ONCE = 500
_FIRST = UUID(int=0)


@dataclass
class SagaCounts:
    """Counts of a saga's instances and steps in this process since its start.

    steps: accepted commands. refusals, timeouts: of steps. compensations: accepted undos. fired: delivered timers.
    """

    started: int = 0
    done: int = 0
    steps: int = 0
    refusals: int = 0
    timeouts: int = 0
    compensations: int = 0
    fired: int = 0

    def count(self, record: SagaRecord, instance: SagaInstance[Any]) -> None:
        """Count a record that this process has appended. instance: with the record folded."""
        match record:
            case SagaHandledEvent():
                self.started += instance.version == 1
            case SagaStepConfirmed():
                undid = isinstance(instance.steps[record.step - 1], UndoStep)
                self.compensations += undid
                self.steps += not undid
            case SagaStepRefused():
                self.refusals += 1
            case SagaStepTimedOut():
                self.timeouts += 1
            case SagaTimerFired():
                self.fired += 1
            case _:
                pass
        self.done += instance.phase is Phase.DONE


class Steps:
    """Issues the steps of one saga's instances. Each instance with a current step has a task, its driver.

    in_flight: commands that are issued concurrently, at most.
    """

    def __init__(
        self,
        database: Database,
        dispatcher: Dispatcher,
        conducted: Conducted,
        instances: Instances,
        *,
        in_flight: int,
    ) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._domain = conducted.domain
        self._commands = {command.__declared__.name: command for command in conducted.domain.decider_of}
        self._saga = conducted.saga
        self._parked = conducted.parked
        self._policy = conducted.parked.policy
        self._clock = conducted.clock
        self._instances = instances
        self._in_flight = asyncio.Semaphore(in_flight)
        self._drivers: set[asyncio.Task[None]] = set()
        self.counts = SagaCounts()

    @contextmanager
    def running(self, group: asyncio.TaskGroup) -> Iterator[None]:
        """Drive instances in tasks of this group until the context is left. Begins with those that were under way."""
        self._group = group
        resuming = group.create_task(self._resume())
        try:
            yield
        finally:
            for task in (resuming, *self._drivers):
                task.cancel()

    def drive(self, held: Held, *, anew: bool = False) -> None:
        """Issue an instance's steps in a task. anew: the current step has changed, so a running driver is replaced."""
        if held.driver is not None and not held.driver.done():
            if not anew or held.driver is asyncio.current_task():
                return
            held.driver.cancel()
        if held.instance.current is None:
            return
        held.driver = self._group.create_task(self._run(held))
        self._drivers.add(held.driver)
        held.driver.add_done_callback(self._drivers.discard)

    async def record(self, held: Held, entry: Entry) -> None:
        """Append a record and count it. The caller has the instance's lock. If the record withdraws the step that is
        being issued, drive the instance anew. Raises as `Instances.append`."""
        await self._instances.append(held, entry)
        self.counts.count(entry.record, held.instance)
        step = held.instance.current
        if isinstance(step, ForwardStep) and step.withdrawn:
            self.drive(held, anew=True)

    async def _resume(self) -> None:
        """Drive the instances whose step was being issued when the previous worker ended."""
        after = _FIRST
        while True:
            rows = await self._database.pool.fetch(_SQL["to_resume"], self._saga.name, after, RESUMED_AT_ONCE)
            for row in rows:
                held = await self._instances.readable(row["stream_id"])
                if held is not None:
                    self.drive(held)
            if len(rows) < RESUMED_AT_ONCE:
                return
            after = rows[-1]["stream_id"]

    async def _run(self, held: Held) -> None:
        """Issue an instance's steps one after another, until none is left or its key is parked."""
        HANDLED.set((held.instance.correlation_id, f"saga {self._saga.name}"))  # of this task, which ends with it
        passing = 0
        while (step := held.instance.current) is not None:
            key = held.instance.key
            assert key is not None  # an instance begins with an event
            if self._parked.is_parked(key):
                return
            try:
                await self._run_step(held, step)
            except MemoryOutdated:
                raise  # it ends the conductor, which starts again from the log
            except Changed:
                continue
            except PASSING as error:
                passing += 1
                pause = backoff(passing)
                if not self._database.outage.covers(f"saga {self._saga.name}", error):
                    logger.warning(
                        "saga %s: %s, step %d is issued again in %.1f s: %s: %s",
                        *(self._saga.name, key, step.number, pause, type(error).__name__, error),
                    )
                await asyncio.sleep(pause)
                continue
            except Exception as error:  # noqa: BLE001 - whatever the app's code raises; `set_aside` logs it
                if held.instance.ended:
                    return
                # A command id that another command has used never becomes free: only an operator can cause a retry.
                taken = isinstance(error, CommandIdReused)
                held.failures = 1 + (self._policy.times if taken else held.failures)
                self._parked.set_aside(key, step.position, error, held.failures)
                return
            held.failures = passing = 0

    async def _run_step(self, held: Held, step: Step) -> None:
        """Issue a step until it has an outcome, and record the outcome."""
        if isinstance(step, ForwardStep) and step.withdrawn:
            await self._record_failure(held, step, SagaStepTimedOut, {})
            return
        try:
            outcome = await self._issue_in_time(held, step)
        except TimeoutError:
            await self._record_failure(held, step, SagaStepTimedOut, {})
            return
        if isinstance(outcome, Refusal):
            facts = msgspec.to_builtins(outcome.facts, str_keys=True)
            await self._record_failure(
                held, step, SagaStepRefused, {"code": outcome.code, "message": outcome.message, "facts": facts}
            )
        elif outcome is None:
            async with held.lock:
                await self._instances.read_again(held)
        else:
            await self._record_accepted(held, step, outcome.version, outcome.position)

    # ---------------------------------------------------------------------------------------------------------- issuing

    async def _issue_in_time(self, held: Held, step: Step) -> Accepted | Refusal | None:
        """Issue a step's command, as `_issue` does.

        Raises:
            TimeoutError: the step's deadline has passed.
        """
        if step.due_at is None:
            return await self._issue(held, step)
        issuing = asyncio.create_task(self._issue(held, step))
        late = asyncio.create_task(self._clock.sleep_until(step.due_at))
        try:
            await asyncio.wait([issuing, late], return_when=asyncio.FIRST_COMPLETED)
        finally:
            late.cancel()
            issuing.cancel()  # has no effect if it is done
        await asyncio.wait([issuing])
        if issuing.cancelled():
            raise TimeoutError
        return issuing.result()

    async def _issue(self, held: Held, step: Step) -> Accepted | Refusal | None:
        """Return the command's outcome; None if a record of this instance has its id.

        A step with a deadline is issued again until then, even if no retry is left: a timeout is an outcome, and a
        parked key waits for an operator.

        Raises:
            CommandIdReused: a command on another stream has its id.
        """
        command = read_command(self._commands, step)
        origin = self._origin(held.instance, step)
        retry = self._saga.undo_retry if isinstance(step, UndoStep) else None
        passing = failures = refusals = 0
        while True:
            try:
                async with self._in_flight:
                    outcome = await self._dispatcher.issue(
                        command, command_id=step.command_id, origin=origin, epoch=self._instances.epoch or None
                    )
                if not isinstance(outcome, Refusal) or retry is None:
                    return outcome
                refusals += 1
                pause = retry.pause(refusals)
                if pause is None:
                    return outcome
            except CommandIdReused as reused:
                if reused.stream_id != held.instance.stream_id:
                    raise
                return None
            except MemoryOutdated:
                raise
            except PASSING:
                passing += 1
                pause = backoff(passing)
            except Exception:
                failures += 1
                pause = self._policy.pause(failures)
                if pause is None and step.due_at is None:
                    held.failures = self._policy.times  # these attempts count
                    raise
                pause = self._policy.longest if pause is None else pause
                self._parked.progress.retries += 1
            await asyncio.sleep(pause)

    # -------------------------------------------------------------------------------------------------------- recording

    async def _record_accepted(self, held: Held, step: Step, version: int, position: int) -> None:
        async with held.lock:
            instance = self._still(held, step)
            record = SagaStepConfirmed(
                saga=self._saga.name, at=self._clock.now(), step=step.number, version=version, position=position
            )
            await self._conclude(held, record, step, internal_id(step.command_id, "confirmed"))
        if isinstance(step, UndoStep):
            logger.debug(
                "saga %s: %s, step %d, the undo %s, was accepted",
                *(self._saga.name, instance.key, step.number, step.command),
            )

    async def _record_failure(
        self, held: Held, step: Step, kind: type[SagaStepRefused | SagaStepTimedOut], facts: dict[str, Any]
    ) -> None:
        """Record that a step was not accepted. The record takes the command's id, so that the command cannot be
        accepted later. If it was accepted meanwhile, record that instead.

        Raises:
            RecordIdTaken: a command that is not this saga's has the id.
        """
        try:
            async with held.lock:
                instance = self._still(held, step)
                record = kind(saga=self._saga.name, at=self._clock.now(), step=step.number, **facts)
                await self._conclude(held, record, step, step.command_id)
        except RecordIdTaken as taken:
            if not await self._dispatcher.is_from(step.command_id, self._origin(held.instance, step)):
                raise
            await self._record_accepted(held, step, taken.appended.version, taken.appended.position)
            return
        if instance.phase is Phase.PARKED:
            logger.error(
                "saga %s: %s is parked: %s; an operator must act, see: headwater sagas show %s",
                *(self._saga.name, instance.key, instance.parked_for, instance.key),
            )

    async def _conclude(self, held: Held, record: SagaRecord, step: Step, command_id: UUID) -> None:
        instance = held.instance
        given = input_of(instance, record, None, self._domain)
        record = replace(record, then=reaction_to(instance, given, f"step {step.number} {step.command_id}", record.at))
        await self.record(held, Entry(record, given, command_id, causation_id=step.command_id))

    def _origin(self, instance: SagaInstance[Any], step: Step) -> Origin:
        return Origin(instance.correlation_id, step.cause_id, f"saga {self._saga.name}")

    @staticmethod
    def _still(held: Held, step: Step) -> SagaInstance[Any]:
        """Return the instance.

        Raises:
            Changed: the step is no longer its current one.
        """
        current = held.instance.current
        if current is None or current.number != step.number or current.command_id != step.command_id:
            raise Changed
        return held.instance
