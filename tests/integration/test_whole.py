"""The whole: whatever is commanded, killed, poisoned and tried again, in the end rows are the fold of the log.

Hypothesis makes the histories, each on a database of its own. Two processes take commands, up to two keep the read
models. Most workers run here, so that their folds can be poisoned, and are killed by cutting their sockets and tasks;
one is a real process, killed by SIGKILL. It is run from this folder with the app below.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeAlias, assert_never
from uuid import UUID, uuid4

import asyncpg
from hypothesis import HealthCheck, Phase, event, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.commands import clean_environ
from tests.integration.folding import folded, logged, stored
from tests.waiting import until

from bank.accounts.domain import (
    AccountClosed,
    AccountFrozen,
    AccountOpened,
    AccountUnfrozen,
    CloseAccount,
    Deposit,
    FreezeAccount,
    MoneyDeposited,
    MoneyWithdrawn,
    OpenAccount,
    UnfreezeAccount,
    Withdraw,
)
from bank.accounts.feature import accounts
from bank.accounts.views import account_view
from bank.users.domain import ChangeEmail, EmailChanged, RegisterUser, UserRegistered
from bank.users.feature import users
from bank.users.views import user_view
from headwater import App, Command, Event, Feature, Park, ReadModel, Recorded, Refused, Retry, Stop, View, deadletters
from headwater.config import Settings
from headwater.database import Database
from headwater.dispatch import Accepted
from headwater.embedded import EmbeddedPostgres
from headwater.failure import OnFailure
from headwater.log import Log
from headwater.node import Node
from headwater.verify import Verifier

HERE = Path(__file__).parent
SECONDS = 20.0
"""Until something that must happen is given up."""

QUICK = replace(Settings(), poll_seconds=0.1, lease_seconds=0.6, projection_batch=5, projection_cache=3)

POISON: set[tuple[str, type[Event], UUID]] = set()
"""What folds fail on now: a read model's name, an event, a row's key."""

USERS = [UUID(int=n) for n in (1, 2, 3)]
ACCOUNTS = [UUID(int=n) for n in (11, 12, 13, 14)]


# The app: the bank's read models, and one whose rows come and go; each may be poisoned -------------------------------


class Movable(ReadModel, key="account_id"):
    """An account whose money can move now."""

    account_id: UUID
    since: datetime


def fold_movable(
    row: Movable | None, event: Recorded[AccountOpened | AccountFrozen | AccountUnfrozen | AccountClosed]
) -> Movable | None:
    match event.data:
        case AccountOpened() | AccountUnfrozen():
            return Movable(account_id=event.data.account_id, since=event.recorded_at)
        case AccountFrozen() | AccountClosed():
            return None
        case _:
            assert_never(event.data)


class Owner(ReadModel, key="owner_id"):
    """A user, with how many accounts were opened: from streams of two kinds."""

    owner_id: UUID
    name: str | None
    opened: int


def fold_owner(row: Owner | None, event: Recorded[UserRegistered | AccountOpened]) -> Owner:
    name, opened = (row.name, row.opened) if row else (None, 0)
    match event.data:
        case UserRegistered():
            return Owner(owner_id=event.data.user_id, name=event.data.name, opened=opened)
        case AccountOpened():
            return Owner(owner_id=event.data.owner_id, name=name, opened=opened + 1)
        case _:
            assert_never(event.data)


def owner_of(event: UserRegistered | AccountOpened) -> UUID:
    return event.user_id if isinstance(event, UserRegistered) else event.owner_id


movable_view = View(Movable, fold_movable)
owner_view = View(Owner, fold_owner, route=owner_of)
VIEWS: list[View[Any]] = [user_view, account_view, movable_view, owner_view]


def poisonable(view: View[Any], on_failure: OnFailure) -> View[Any]:
    """The same read model, with a bug that comes and goes."""

    @wraps(view.fold)
    def fold(row: Any, event: Recorded[Any]) -> Any:
        kind = type(event.data)
        if (view.name, kind, view.route_of(kind)(event.data)) in POISON:
            raise ZeroDivisionError("a bug in the fold")
        return view.fold(row, event)

    return View(view.model, fold, view.route, on_failure)


app = App(
    [
        Feature(users.deciders, [poisonable(user_view, Park())], users.upcasters),
        Feature(
            accounts.deciders,
            [
                poisonable(account_view, Retry(times=1, first=0.02, then=Park())),
                poisonable(movable_view, Retry(times=1, first=0.02, then=Stop())),
                poisonable(owner_view, Park()),
            ],
            accounts.upcasters,
        ),
    ]
)


# What may happen -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Send:
    """Commands, all at once. twice: each to both processes under one id. seen: before more happens."""

    commands: Sequence[Command]
    twice: bool = False
    seen: bool = False


@dataclass(frozen=True)
class Again:
    """A command of before once more, under its id; back: so many before the last."""

    back: int


@dataclass(frozen=True)
class Start:
    """A worker. apart: as a process of its own, whose folds are never poisoned."""

    apart: bool = False


@dataclass(frozen=True)
class Leave:
    """The oldest worker ends as it should."""


@dataclass(frozen=True)
class Kill:
    """The oldest worker dies and says nothing."""


@dataclass(frozen=True)
class Faint:
    """The oldest worker's heart stops, so that its leases run out; its projectors go on as if they had them."""


@dataclass(frozen=True)
class KillMidway:
    """All workers die when one has moved a checkpoint and has not committed."""

    commands: Sequence[Command]


@dataclass(frozen=True)
class Cut:
    """All workers lose their connections to the database, and live."""


@dataclass(frozen=True)
class Poison:
    """Folds of an event on a key fail from now on."""

    view: str
    kind: type[Event]
    key: UUID


@dataclass(frozen=True)
class Heal:
    """The bug is fixed."""


@dataclass(frozen=True)
class TryAgain:
    """`headwater dead-letters retry`."""


@dataclass(frozen=True)
class Discard:
    """`headwater dead-letters discard`, twice, while no worker is there."""

    view: str


Step: TypeAlias = Send | Again | Start | Leave | Kill | Faint | KillMidway | Cut | Poison | Heal | TryAgain | Discard

user, account = st.sampled_from(USERS), st.sampled_from(ACCOUNTS)
email = st.sampled_from(["a@bank.example", "A@bank.example", "b@bank.example", "c@bank.example"])
amount = st.sampled_from([Decimal("0.01"), Decimal("5.00"), Decimal("19.99"), Decimal("100.00")])

FIRST: list[Command] = [
    *(RegisterUser(user_id=key, email=f"{key.int}@bank.example", name="Ada") for key in USERS[:2]),
    *(OpenAccount(account_id=key, owner_id=USERS[0], currency="EUR") for key in ACCOUNTS[:3]),
]
PAID_IN: list[Command] = [Deposit(account_id=key, amount=Decimal("100.00")) for key in ACCOUNTS[:3]]
FROZEN_AND_NOT: list[Command] = [kind(account_id=ACCOUNTS[0]) for kind in (FreezeAccount, UnfreezeAccount)]

command: st.SearchStrategy[Command] = st.one_of(
    st.builds(RegisterUser, user_id=user, email=email, name=st.just("Ada")),
    st.builds(ChangeEmail, user_id=user, email=email),
    st.builds(OpenAccount, account_id=account, owner_id=user, currency=st.just("EUR")),
    *[st.builds(Deposit, account_id=account, amount=amount)] * 3,
    *[st.builds(Withdraw, account_id=account, amount=amount)] * 2,
    *(st.builds(kind, account_id=account) for kind in (FreezeAccount, UnfreezeAccount, UnfreezeAccount, CloseAccount)),
)
commands = st.lists(command, min_size=4, max_size=15)

poison = st.one_of(
    st.builds(Poison, st.just("User"), st.sampled_from([UserRegistered, EmailChanged]), user),
    *[st.builds(Poison, st.just("Account"), st.sampled_from([MoneyDeposited, MoneyWithdrawn, AccountFrozen]), account)]
    * 2,
    st.builds(Poison, st.just("Movable"), st.sampled_from([AccountFrozen, AccountUnfrozen]), account),
    st.builds(Poison, st.just("Owner"), st.just(AccountOpened), user),
)
step: st.SearchStrategy[Step] = st.one_of(
    *[st.builds(Send, commands, st.booleans(), st.booleans())] * 4,
    st.builds(Again, st.integers(0, 40)),
    *[st.just(Start())] * 2,
    st.just(Leave()),
    st.just(Kill()),
    st.just(Faint()),
    st.builds(KillMidway, commands.map(lambda some: [*some, *PAID_IN])),
    st.just(Cut()),
    *[poison] * 2,
    st.just(Heal()),
    st.just(TryAgain()),
    # Not of users: without the event that began it, the fold of a later one would fail for ever.
    st.builds(Discard, st.sampled_from(["Account", "Owner"])),
)
at_first = st.one_of(
    st.builds(Poison, st.just("User"), st.just(UserRegistered), st.sampled_from(USERS[:2])),
    st.builds(Poison, st.just("Account"), st.just(MoneyDeposited), st.sampled_from(ACCOUNTS[:3])),
    st.builds(Poison, st.sampled_from(["Account", "Movable"]), st.just(AccountFrozen), st.just(ACCOUNTS[0])),
)
histories = st.builds(
    lambda bug, steps: [Start(), bug, Send(FIRST + PAID_IN + FROZEN_AND_NOT, seen=True), *steps],
    at_first,
    st.lists(step, min_size=6, max_size=14),
)


# Workers -------------------------------------------------------------------------------------------------------------


class Here:
    """A worker in this process, with poisoned folds, which can die as a process does."""

    def __init__(self, dsn: str) -> None:
        self.node = Node(app, QUICK, dsn, serve=False, work=True)
        self._connections: list[asyncpg.Connection] = []
        self._connect = self.node.database.connect
        self.node.database.connect = self._noted  # type: ignore[method-assign]

    async def _noted(self, name: str, **options: Any) -> asyncpg.Connection:
        self._connections.append(await self._connect(name, **options))
        return self._connections[-1]

    async def start(self) -> None:
        await self.node.__aenter__()

    async def leave(self) -> None:
        await self.node.__aexit__(None, None, None)

    async def kill(self) -> None:
        """Nothing is given back or rolled back: the sockets are gone first."""
        tasks: set[asyncio.Task[None]] = set(self.node.supervisor._tasks.values())
        while True:
            for connection in self._connections:
                connection.terminate()
            for task in tasks:
                task.cancel()
            # More than once: a lost connection may be raised where a task was cancelled, and in its place.
            _, tasks = await asyncio.wait(tasks, timeout=0.05)
            if not tasks:
                break
        self.node.database.pool.terminate()


class Apart:
    """A worker as a process of its own."""

    def __init__(self, dsn: str) -> None:
        self._environ = clean_environ() | {
            "DATABASE_URL": dsn,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HEADWATER_POLL_SECONDS": str(QUICK.poll_seconds),
            "HEADWATER_LEASE_SECONDS": str(QUICK.lease_seconds),
            "HEADWATER_PROJECTION_BATCH": str(QUICK.projection_batch),
        }

    async def start(self) -> None:
        arguments = ("-m", "headwater", "work", "--app", "test_whole:app", "--port", "0")
        self._process = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=HERE, env=self._environ)

    async def leave(self) -> None:
        self._process.terminate()
        await self._process.wait()

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


# A history -----------------------------------------------------------------------------------------------------------


class History:
    """One example: its processes, and what it was told."""

    def __init__(self, dsn: str, connection: asyncpg.Connection, doors: Sequence[Node]) -> None:
        self._dsn = dsn
        self._connection = connection
        self._doors = doors
        self._workers: list[Here | Apart] = []
        self._fainted: list[Here] = []
        self._sent: list[tuple[UUID, Command]] = []
        self._turns = itertools.cycle(range(len(doors)))
        self.accepted: dict[UUID, Accepted] = {}
        self.refusals: set[str] = set()

    async def take(self, step: Step) -> None:
        match step:
            case Send():
                await self._send(step.commands, step.twice)
                if step.seen:
                    await until(self._seen, SECONDS)
            case Again():
                if step.back < len(self._sent):
                    await self._execute(*self._sent[-1 - step.back])
            case Start():
                await self._start(Apart(self._dsn) if step.apart else Here(self._dsn))
            case Leave():
                if self._workers:
                    await self._workers.pop(0).leave()
            case Kill():
                if self._workers:
                    await self._workers.pop(0).kill()
            case Faint():
                await self._faint()
            case KillMidway():
                await self._kill_midway(step.commands)
            case Cut():
                await self._connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
                    "and (application_name like 'headwater projection%' or application_name = 'headwater leases')"
                )
            case Poison():
                POISON.add((step.view, step.kind, step.key))
            case Heal():
                POISON.clear()
            case TryAgain():
                event(f"dead letters tried again: {'some' if await self._letters() else 'none'}")
                await deadletters.retry(self._connection, deadletters.Filter())
            case Discard():
                await self._discard(deadletters.Filter(step.view))
            case _:
                assert_never(step)

    async def end(self) -> None:
        """Everything is healed and tried again once; one new worker has the rest to do."""
        await self._leave_all()
        POISON.clear()
        await self._start(Here(self._dsn))
        await until(self._complete, SECONDS)
        event(f"dead letters in the end: {'some' if await self._letters() else 'none'}")
        await deadletters.retry(self._connection, deadletters.Filter())
        await until(self._no_letters, SECONDS)

    async def close(self) -> None:
        """Nothing is left running, whatever became of it."""
        for worker in [*self._workers, *self._fainted]:
            await worker.kill()

    async def _leave_all(self) -> None:
        while self._workers:
            await self._workers.pop().leave()

    async def _discard(self, where: deadletters.Filter) -> None:
        await self._leave_all()
        discarded = await deadletters.discard(self._connection, where, everything=False)
        event(f"dead letters discarded: {'some' if discarded else 'none'}")
        assert await deadletters.discard(self._connection, where, everything=False) == 0
        await self._start(Here(self._dsn))

    async def _start(self, worker: Here | Apart) -> None:
        if len(self._workers) < 2:
            await worker.start()
            self._workers.append(worker)

    async def _send(self, commands: Sequence[Command], twice: bool) -> None:
        asked = [(uuid4(), command) for command in commands]
        self._sent += asked
        await asyncio.gather(*(self._execute(*each) for each in asked for _ in range(2 if twice else 1)))

    async def _execute(self, command_id: UUID, command: Command) -> None:
        door, before = self._doors[next(self._turns)], self.accepted.get(command_id)
        try:
            accepted = await door.dispatcher.execute(command, command_id=command_id)
        except Refused as refusal:
            self.refusals.add(type(refusal).__name__)
            accepted = None
        if accepted is None:
            assert before is None, f"{command!r} was accepted before"
        else:
            assert self.accepted.setdefault(command_id, accepted) == accepted, command

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
            await holding.execute("begin; lock table read.account_1 in share mode")
            if not self._workers:
                await self._start(Here(self._dsn))
            await self._send(commands, twice=False)
            await until(self._writing_or_seen, SECONDS)
            event(f"killed {'midway' if await self._writing() else 'at rest'}")
            while self._workers:
                await self._workers.pop(0).kill()
        finally:
            await holding.close()

    # What is waited for

    async def _reached(self, names: Sequence[str]) -> bool:
        query = """
            select count(*) from headwater.projections p, headwater.head h
             where p.state = 'live' and p.name = any($1) and p.position = h.position
        """
        return bool(await self._connection.fetchval(query, names) == len(names))

    async def _seen(self) -> bool:
        """Whether the read models that nothing stops are at the end of the log, if anyone keeps them."""
        return not self._workers or await self._reached(["User", "Account", "Owner"])

    async def _complete(self) -> bool:
        return await self._reached([view.name for view in VIEWS])

    async def _writing(self) -> bool:
        """Whether a worker stands in the transaction that writes accounts."""
        query = """
            select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
               and application_name = 'headwater projection Account'
        """
        return bool(await self._connection.fetchval(query))

    async def _writing_or_seen(self) -> bool:
        return await self._writing() or await self._seen()

    async def _has_nothing(self, worker_id: UUID) -> bool:
        query = "select not exists (select from headwater.projections where owner = $1)"
        return bool(await self._connection.fetchval(query, worker_id))

    async def _letters(self) -> int:
        return int(await self._connection.fetchval("select count(*) from headwater.dead_letters"))

    async def _no_letters(self) -> bool:
        return not await self._letters()


# What must be so in the end ------------------------------------------------------------------------------------------


WATCH = """
create table twice (name text, before bigint, after bigint);
create function note() returns trigger language plpgsql as $$ begin
  insert into twice values (new.name, old.position, new.position);
  return null;
end $$;
create trigger note after update of position on headwater.projections
  for each row when (new.position <= old.position) execute function note();

create table dropped (name text, key uuid, position bigint);
create function note_dropped() returns trigger language plpgsql as $$ begin
  insert into dropped values (new.projection, new.key, new.position);
  return null;
end $$;
create trigger note_dropped after update of discarded on headwater.dead_letters
  for each row when (new.discarded and not old.discarded) execute function note_dropped();
"""
"""Notes what is committed twice: rows alone would not tell, since the same fold makes the same rows. And what is
discarded, which rows are the fold of the log without."""


async def require_whole(dsn: str, connection: asyncpg.Connection, history: History) -> None:
    log = await logged(connection, app.domain.codec)
    assert [tuple(row) for row in await connection.fetch("select * from twice")] == []
    dropped = {(name, at): key for name, key, at in await connection.fetch("select * from dropped")}
    for view in VIEWS:
        rows = await stored(connection, view)
        assert rows == folded(view, [each for each in log if (view.name, each.position) not in dropped]), view.name
        query = "select key from headwater.tombstones where projection = $1"
        assert rows.keys().isdisjoint({key for (key,) in await connection.fetch(query, view.name)}), view.name

    async with Database(dsn, pool_size=2) as database:
        for view in VIEWS:
            report = await Verifier(Log(database.pool, app.domain.codec), view).live(database, None)
            without = {key for (name, _), key in dropped.items() if name == view.name}
            assert {each.key for each in report.differences} <= without, view.name
            assert report.checked >= len(folded(view, log)), view.name

    moved = sum(
        (each.data.amount for each in log if isinstance(each.data, MoneyDeposited)),
        -sum((each.data.amount for each in log if isinstance(each.data, MoneyWithdrawn)), Decimal(0)),
    )
    if not any(name == "Account" for name, _ in dropped):
        assert await connection.fetchval("select coalesce(sum(balance), 0) from read.account") == moved

    # A command of the bank leaves one event, or none and is noted.
    noted = await connection.fetch("select command_id from headwater.commands")
    done = Counter([each.command_id for each in log] + [row["command_id"] for row in noted])
    assert done == Counter(history.accepted.keys())

    assert [each.position for each in log] == list(range(1, len(log) + 1))
    assert await connection.fetchval("select position from headwater.head") == len(log)


_names = itertools.count(1)


@example(  # a worker of another process, killed in the middle of a transaction, and what it left is poisoned
    [
        Start(apart=True),
        Send(FIRST + PAID_IN, seen=True),
        KillMidway(PAID_IN * 3),
        Poison("Account", MoneyDeposited, ACCOUNTS[0]),
        Start(),
        Send(PAID_IN + FROZEN_AND_NOT, twice=True, seen=True),
        TryAgain(),
        KillMidway(PAID_IN),
    ]
)
@example(  # one read model stands still, keys of the others are set aside; two workers lose what they have
    [
        Start(),
        Start(),
        Poison("Movable", AccountFrozen, ACCOUNTS[0]),
        Poison("User", UserRegistered, USERS[1]),
        Poison("Account", MoneyDeposited, ACCOUNTS[1]),
        Poison("Owner", AccountOpened, USERS[0]),
        Send(FIRST + PAID_IN + FROZEN_AND_NOT, seen=True),
        Send([ChangeEmail(user_id=key, email="a@bank.example") for key in USERS] * 2, twice=True, seen=True),
        Cut(),
        Faint(),
        Send(PAID_IN * 3, twice=True, seen=True),
        Send(PAID_IN * 3, seen=True),
        Discard("Account"),
        Discard("Owner"),
        Kill(),
        Heal(),
        TryAgain(),
        Send(PAID_IN * 3, seen=True),
        Again(0),
    ]
)
@given(histories)
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # a shorter history of the same failure costs minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_rows_are_the_fold_of_the_log_whatever_happened(
    postgres: EmbeddedPostgres, empty_template: str, steps: Sequence[Step]
) -> None:
    name = f"whole_{next(_names)}"
    POISON.clear()
    async with AsyncExitStack() as stack:
        server = await asyncpg.connect(postgres.dsn())
        stack.push_async_callback(server.close)
        await server.execute(f"create database {name} template {empty_template}")
        stack.push_async_callback(partial(server.execute, f"drop database {name} with (force)"))
        dsn = postgres.dsn(name)
        connection = await asyncpg.connect(dsn)
        stack.push_async_callback(connection.close)
        await connection.execute(WATCH)
        doors = [await stack.enter_async_context(Node(app, QUICK, dsn, serve=True, work=False)) for _ in range(2)]
        history = History(dsn, connection, doors)
        stack.push_async_callback(history.close)
        for step in steps:
            async with asyncio.timeout(2 * SECONDS):
                await history.take(step)
        async with asyncio.timeout(3 * SECONDS):
            await history.end()
        await require_whole(dsn, connection, history)
        for refused in history.refusals:
            event(f"refused: {refused}")
