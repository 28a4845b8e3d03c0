"""`headwater verify` and invariants: which ones it checks, what it prints, and its exit code."""

from __future__ import annotations

from decimal import Decimal
from functools import partial
from uuid import UUID

import asyncpg
from tests.support.commands import run_command
from tests.support.log import append_undecided

from bank.accounts.domain import MoneyDeposited

A = UUID(int=1)
WRONG = [(A, MoneyDeposited(account_id=A, amount=Decimal(5), balance=Decimal(6)))]
FOUND = (
    "balance: 1 event checked up to position 1: 1 violation\n"
    f"  {A}  position 1: the event says that the balance is 6; the amounts add up to 5\n"
)


async def test_an_invariant_is_checked_by_its_name(dsn: str, connection: asyncpg.Connection) -> None:
    await append_undecided(connection, "account", WRONG)
    verify = partial(run_command, "verify", DATABASE_URL=dsn)
    assert await verify("balance") == (1, FOUND, "")
    right = "transfer_money: 0 events checked up to position 1: no violation\n"
    assert await verify("transfer_money", "--sample", "5") == (0, right, "")


async def test_a_sample_of_rows_checks_no_invariant_and_says_so(dsn: str, connection: asyncpg.Connection) -> None:
    await append_undecided(connection, "account", WRONG)
    code, out, _ = await run_command("verify", "--sample", "5", DATABASE_URL=dsn)
    assert code == 0
    assert out.splitlines()[-2:] == [
        "balance: not checked, since it reads the whole log; use --all, or `headwater verify balance`",
        "transfer_money: not checked, since it reads the whole log; use --all, or `headwater verify transfer_money`",
    ]
    assert await connection.fetchval("select count(*) from headwater.invariants") == 0


async def test_the_result_of_an_invariant_that_is_gone_is_removed(dsn: str, connection: asyncpg.Connection) -> None:
    await connection.execute("insert into headwater.invariants values ('gone', 1, 7), ('balance', 1, 7)")
    assert (await run_command("verify", "--all", DATABASE_URL=dsn))[0] == 0
    results = await connection.fetch("select name, violations from headwater.invariants order by name")
    assert [tuple(each) for each in results] == [("balance", 0), ("transfer_money", 0)]


async def test_an_unknown_name_is_refused_with_the_names_of_read_models_and_invariants(dsn: str) -> None:
    assert await run_command("verify", "balances", DATABASE_URL=dsn) == (
        1,
        "",
        "headwater: the app has no read model or invariant 'balances'; it has User, Account, Transfer, balance, "
        "transfer_money\n",
    )
