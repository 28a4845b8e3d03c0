"""The whole system under faults: after any mix of commands, kills, bugs, rebuilds and retries, rows are the log's fold.

Hypothesis generates the histories; each runs on a database of its own. Two nodes take commands, and up to two workers
run projections and sagas. Money is conserved at every moment. Most workers run in the test process, so that the test
can put bugs into their folds; they are killed by cutting their sockets and cancelling their tasks. Some are processes
of their own, killed by SIGKILL.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import AsyncExitStack
from decimal import Decimal
from functools import partial

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, event, example, given, settings
from tests.support.whole.app import POISON, app
from tests.support.whole.ending import WATCH, require_whole
from tests.support.whole.history import GATE, SECONDS, History
from tests.support.whole.steps import (
    ACCOUNTS,
    BEGUN,
    FROZEN_AND_NOT,
    MOVED,
    PAID_IN,
    TRANSFERS,
    USERS,
    Again,
    Cut,
    Discard,
    Faint,
    Heal,
    Kill,
    KillIssuing,
    KillMidway,
    Poison,
    Rebuild,
    Send,
    Start,
    Step,
    TryAgain,
    histories,
)
from tests.support.whole.workers import QUICK

from bank.accounts.domain import AccountFrozen, AccountOpened, AccountUnfrozen, MoneyDeposited, Withdraw
from bank.transfers.domain import TransferWithdrawn
from bank.users.domain import ChangeEmail, UserRegistered
from headwater.postgres.embedded import EmbeddedPostgres
from headwater.server.node import Node

_names = itertools.count(1)


@pytest.mark.kills
@example(  # a worker process is killed in the middle of a transaction, and the fold of its events then has a bug
    [
        Start(apart=True),
        *BEGUN,
        KillMidway(PAID_IN * 3),
        Poison("Account", MoneyDeposited, ACCOUNTS[0]),
        Start(),
        Send(PAID_IN + FROZEN_AND_NOT, twice=True, seen=True),
        TryAgain(),
        KillMidway(PAID_IN),
        Start(apart=True),
        KillIssuing(MOVED[1]),
    ]
)
@example(  # one projection stops and others park keys; a worker loses its connections, another its leases
    [
        Start(),
        Start(),
        Poison("Movable", AccountFrozen, ACCOUNTS[0]),
        Poison("User", UserRegistered, USERS[1]),
        Poison("Account", MoneyDeposited, ACCOUNTS[1]),
        Poison("Owner", AccountOpened, USERS[0]),
        *BEGUN,
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
@example(  # rebuilds run while keys are parked and workers die, one of them in a swap
    [
        Start(),
        Poison("Account", MoneyDeposited, ACCOUNTS[0]),
        Poison("Transfer", TransferWithdrawn, TRANSFERS[0]),
        Poison("Movable", AccountUnfrozen, ACCOUNTS[0]),
        *BEGUN,
        Send(MOVED),
        *map(Rebuild, ["Account", "Transfer", "Owner"]),
        Kill(),
        Rebuild("Account"),
        KillMidway(PAID_IN * 3),
        Send([Withdraw(account_id=ACCOUNTS[0], amount=Decimal("0.01"))]),
        Discard("Account"),
        Send(PAID_IN, seen=True),
        *map(Rebuild, ["Account", "User", "Movable"]),
        Start(apart=True),
        Cut(),
        Send(PAID_IN, seen=True),
        Rebuild("Account"),
        Faint(),
        Discard("Account"),
        Kill(),
    ]
)
@given(histories)
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # shrinking a failure to a shorter history would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_rows_are_the_fold_of_the_log_after_any_history_of_faults(
    postgres: EmbeddedPostgres, headwater_template: str, steps: Sequence[Step]
) -> None:
    name = f"whole_{next(_names)}"
    POISON.clear()
    async with AsyncExitStack() as stack:
        server = await asyncpg.connect(postgres.dsn())
        stack.push_async_callback(server.close)
        await server.execute(f"create database {name} template {headwater_template}")
        stack.push_async_callback(partial(server.execute, f"drop database {name} with (force)"))
        dsn = postgres.dsn(name)
        connection = await asyncpg.connect(dsn)
        stack.push_async_callback(connection.close)
        await connection.execute(WATCH + GATE)
        nodes = [await stack.enter_async_context(Node(app, QUICK, dsn, serve=True, work=False)) for _ in range(2)]
        history = History(dsn, connection, nodes)
        stack.push_async_callback(history.close)
        for step in steps:
            async with asyncio.timeout(2 * SECONDS):
                await history.take(step)
        async with asyncio.timeout(3 * SECONDS):
            await history.end()
        await require_whole(dsn, connection, history)
        for refusal in history.refusals:
            event(f"refused: {refusal}")
