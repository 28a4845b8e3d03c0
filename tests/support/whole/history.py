"""Runs a history: carries out its steps on nodes and workers, and waits for their effects."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from functools import partial
from typing import assert_never
from uuid import UUID, uuid4

import asyncpg
from hypothesis import event
from tests.support.folding import at_rest
from tests.support.money import money_is_right
from tests.support.waiting import until
from tests.support.whole.app import POISON, VIEWS, app
from tests.support.whole.steps import (
    Again,
    Cut,
    Discard,
    Faint,
    Heal,
    Kill,
    KillIssuing,
    KillMidway,
    Leave,
    Poison,
    Rebuild,
    Send,
    Start,
    Step,
    TryAgain,
)
from tests.support.whole.workers import Apart, Here

from headwater import Command, Refusal
from headwater.commands.dispatcher import Accepted
from headwater.consumers import dead_letters
from headwater.projections.generations import prepare, rebuild
from headwater.server.node import Node

SECONDS = 20.0
"""The timeout of each wait."""

GATE = """
create function pass() returns trigger language plpgsql as $$ begin
  perform pg_advisory_xact_lock_shared(1);
  return new;
end $$;
create trigger pass before insert on headwater.events
  for each row when (new.type in ('TransferReceived', 'TransferReturned')) execute function pass();
"""
"""A trigger that waits for a lock before money arrives or comes back; SHUT holds it until its session ends."""
SHUT = "select pg_advisory_lock(1)"


class History:
    """One history: its nodes and workers, and the commands that it has sent.

    poisoned: the read models whose fold has had a bug. accepted: the result of each accepted command, by command id.
    refusals: the names of the refusals. asked: the generations of forced rebuilds.
    """

    def __init__(self, dsn: str, connection: asyncpg.Connection, nodes: Sequence[Node]) -> None:
        self._dsn = dsn
        self._connection = connection
        self._nodes = nodes
        self._workers: list[Here | Apart] = []
        self._fainted: list[Here] = []
        self._sent: list[tuple[UUID, Command]] = []
        self._turns = itertools.cycle(range(len(nodes)))
        self.poisoned: set[str] = set()
        self.accepted: dict[UUID, Accepted] = {}
        self.refusals: set[str] = set()
        self.asked: set[tuple[str, int]] = set()

    async def take(self, step: Step) -> None:
        """Carry out a step, and check that no money was lost or doubled."""
        await self._take(step)
        await money_is_right(self._connection)

    async def _take(self, step: Step) -> None:
        match step:
            case Send():
                await self._send(step.commands, step.twice)
                if step.seen:
                    await until(self._seen, SECONDS)
            case Again():
                if step.back < len(self._sent):
                    await self._execute(*self._sent[-1 - step.back])
            case Start():
                await self._start(Apart(self._dsn, self._connection) if step.apart else Here(self._dsn))
            case Leave():
                if self._workers:
                    await self._workers.pop(0).leave()
            case Kill():
                if self._workers:
                    event(f"killed with {'all over' if await at_rest(self._connection) else 'transfers on their way'}")
                    await self._kill_oldest()
            case Faint():
                await self._faint()
            case KillMidway():
                await self._kill_midway(step.commands)
            case KillIssuing():
                await self._kill_issuing(step.transfer)
            case Cut():
                await self._connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
                    "and application_name ~ '^headwater (projection|building|saga|leases)'"
                )
            case Poison():
                POISON.add((step.view, step.kind, step.key))
                self.poisoned.add(step.view)
            case Heal():
                POISON.clear()
            case TryAgain():
                event(f"dead letters tried again: {'some' if await self._letters() else 'none'}")
                await dead_letters.retry(self._connection, dead_letters.LetterFilter())
            case Discard():
                await self._discard(dead_letters.LetterFilter(step.view))
            case Rebuild():
                await self._rebuild(step.view)
            case _:
                assert_never(step)

    async def end(self) -> None:
        """Fix all bugs, restart failed rebuilds, retry dead letters, and let one new worker finish."""
        await self._leave_all()
        POISON.clear()
        for view in await self._failed():
            await self._rebuild(view)
        await self._start(Here(self._dsn))
        await until(self._complete, SECONDS)
        event(f"dead letters in the end: {'some' if await self._letters() else 'none'}")
        await dead_letters.retry(self._connection, dead_letters.LetterFilter())
        await until(self._no_letters, SECONDS)

    async def close(self) -> None:
        """Kill all workers that are left."""
        for worker in [*self._workers, *self._fainted]:
            await worker.kill()

    async def _leave_all(self) -> None:
        while self._workers:
            await self._workers.pop().leave()

    async def _discard(self, where: dead_letters.LetterFilter) -> None:
        await self._leave_all()
        discarded = await dead_letters.discard(self._connection, where, everything=False)
        event(f"dead letters discarded: {'some' if discarded else 'none'}")
        assert await dead_letters.discard(self._connection, where, everything=False) == 0
        await self._start(Here(self._dsn))

    async def _rebuild(self, name: str) -> None:
        view = app.domain.view_named(name)
        await prepare(self._connection, view)
        standing = await rebuild(self._connection, view)
        self.asked.add((name, standing.number))

    async def _start(self, worker: Here | Apart) -> None:
        if len(self._workers) < 2:
            await worker.start()
            self._workers.append(worker)

    async def _kill_oldest(self) -> None:
        worker = self._workers.pop(0)
        event(f"killed one {'apart' if isinstance(worker, Apart) else 'here'}")
        await worker.kill()

    async def _send(self, commands: Sequence[Command], twice: bool) -> None:
        asked = [(uuid4(), command) for command in commands]
        self._sent += asked
        await asyncio.gather(*(self._execute(*each) for each in asked for _ in range(2 if twice else 1)))

    async def _execute(self, command_id: UUID, command: Command) -> None:
        node, before = self._nodes[next(self._turns)], self.accepted.get(command_id)
        answer = await node.dispatcher.execute(command, command_id=command_id)
        if isinstance(answer, Refusal):
            self.refusals.add(type(answer).__name__)
            assert before is None, f"{command!r} was accepted before"
        else:
            assert self.accepted.setdefault(command_id, answer) == answer, command

    async def _faint(self) -> None:
        for worker in self._workers:
            if isinstance(worker, Here):
                await worker.node.supervisor.stop("leases")
                self._workers.remove(worker)
                self._fainted.append(worker)
                await self._start(Here(self._dsn))
                await until(partial(self._has_nothing, worker.node.leases.worker_id), SECONDS)
                break

    async def _kill_midway(self, commands: Sequence[Command]) -> None:
        holding = await asyncpg.connect(self._dsn)
        try:
            await holding.execute("begin; lock table read.account in share mode")
            if not self._workers:
                await self._start(Here(self._dsn))
            await self._send(commands, twice=False)
            await until(self._midway, SECONDS)
            event(f"killed {'midway' if await self._held_up('projection') else 'at rest'}")
            event(f"killed {'in a swap' if await self._held_up('building') else 'in no swap'}")
            event(f"killed with {'all over' if await at_rest(self._connection) else 'transfers on their way'}")
            while self._workers:
                await self._kill_oldest()
        finally:
            await holding.close()

    async def _kill_issuing(self, transfer: Command) -> None:
        holding = await asyncpg.connect(self._dsn)
        try:
            if not self._workers:
                await self._start(Here(self._dsn))
            await until(
                self._seen, SECONDS
            )  # else the steps of other transfers would wait at the gate, and hold the checkpoint up
            await holding.execute(SHUT)
            await self._send([transfer], twice=False)
            await until(self._issuing_or_seen, SECONDS)
            event(f"killed {'issuing' if await self._issuing() else 'issuing nothing'}")
            while self._workers:
                await self._kill_oldest()
        finally:
            await holding.close()

    # Conditions to wait for

    async def _reached(self, names: Sequence[str]) -> bool:
        query = """
            select count(*) from headwater.projections p, headwater.head h
             where p.state = 'live' and p.name = any($1) and p.position = h.position
        """
        return bool(await self._connection.fetchval(query, names) == len(names))

    async def _seen(self) -> bool:
        """True if all sagas are at rest and the read models that never stop have reached the end of the log.

        Also true without a worker, since nothing then advances.
        """
        if not self._workers:
            return True
        return await at_rest(self._connection) and await self._reached(["User", "Account", "Owner", "Transfer"])

    async def _complete(self) -> bool:
        query = "select not exists (select from headwater.projections where state = 'building')"
        return (
            bool(await self._connection.fetchval(query))
            and await at_rest(self._connection)
            and await self._reached([view.name for view in VIEWS])
        )

    async def _failed(self) -> list[str]:
        """Return the read models with a failed rebuild, which workers do not continue."""
        query = "select name from headwater.projections where state = 'building' and failure is not null"
        return [row["name"] for row in await self._connection.fetch(query)]

    async def _midway(self) -> bool:
        """True if the projection of accounts waits in a transaction or is done, and its rebuild waits in a swap."""
        query = """
            select count(*) from headwater.projections
             where name = 'Account' and state = 'building' and failure is null
        """
        if await self._held_up("building") < await self._connection.fetchval(query):
            return False
        return await self._held_up("projection") > 0 or await self._seen()

    async def _held_up(self, at: str) -> int:
        """Return how many sessions that write accounts wait for a lock. at: `projection` or `building`."""
        query = """
            select count(*) from pg_stat_activity
             where datname = current_database() and wait_event_type = 'Lock'
               and application_name like 'headwater ' || $1 || ' Account%'
        """
        return int(await self._connection.fetchval(query, at))

    async def _issuing(self) -> bool:
        """True if a step that moves money waits in its append while the saga's checkpoint is past its cause."""
        query = """
            select p.position = h.position and exists (
                     select from pg_stat_activity where datname = current_database() and wait_event = 'advisory')
              from headwater.projections p, headwater.head h where p.name = 'saga Transfer'
        """
        return bool(await self._connection.fetchval(query))

    async def _issuing_or_seen(self) -> bool:
        return await self._issuing() or await self._seen()

    async def _has_nothing(self, worker_id: UUID) -> bool:
        query = "select not exists (select from headwater.projections where owner = $1)"
        return bool(await self._connection.fetchval(query, worker_id))

    async def _letters(self) -> int:
        """Return the number of dead letters of live and building generations."""
        query = """
            select count(*) from headwater.dead_letters d
              join headwater.projections p on p.name = d.projection and p.generation = d.generation
             where p.state <> 'retired'
        """
        return int(await self._connection.fetchval(query))

    async def _no_letters(self) -> bool:
        return not await self._letters()
