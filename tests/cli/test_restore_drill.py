"""The restore drill of docs/backup.md, with its own commands: a dump of a busy database is restored and checked."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

import asyncpg
from tests.support.commands import run_command

from bank.accounts.domain import Deposit, OpenAccount
from bank.transfers.domain import RequestTransfer
from bank.users.domain import RegisterUser
from headwater.postgres.embedded import EmbeddedPostgres
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]

PAGE = (Path(__file__).parents[2] / "docs" / "backup.md").read_text(encoding="utf-8")
DUMP = re.findall(r"^(pg_dump .*)$", PAGE, re.MULTILINE)
DRILL = PAGE.partition("## Restore drill")[2].partition("```sh\n")[2].partition("```")[0].splitlines()


async def shell(line: str, postgres: EmbeddedPostgres, **names: str) -> None:
    """Run a line of the guide with PostgreSQL's programs. names: what stands for a word of it."""
    program, *options = line.split()
    arguments = [names.get(option, option) for option in options]
    arguments = [option.replace("--dbname=drill", f"--dbname={names['drill']}") for option in arguments]
    arguments = [option.replace("headwater.dump", names["dump"]) for option in arguments]
    process = await asyncio.create_subprocess_exec(
        postgres.binaries / program, *arguments, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    assert (process.returncode, err.decode()) == (0, "")


async def make_business(node: Node) -> None:
    """Register a user, open two accounts, deposit, and transfer."""
    user, one, other = uuid4(), uuid4(), uuid4()
    execute = node.dispatcher.execute
    await execute(RegisterUser(user_id=user, email="ada@example.org", name="Ada"))
    for account in (one, other):
        await execute(OpenAccount(account_id=account, owner_id=user, currency="EUR"))
        await execute(Deposit(account_id=account, amount=Decimal(100)))
    await execute(RequestTransfer(transfer_id=uuid4(), from_account_id=one, to_account_id=other, amount=Decimal(10)))
    for _ in range(50):
        await execute(Deposit(account_id=one, amount=Decimal(1)))


async def test_the_drill_restores_a_dump_that_was_made_while_processes_ran(
    start: Start, dsn: str, blank_dsn: str, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    node = await start()
    await make_business(node)
    names = {'"$DATABASE_URL"': dsn, "drill": blank_dsn, "dump": str(tmp_path / "headwater.dump")}
    (dump,) = DUMP
    await shell(dump, postgres, **names)
    (restore,) = (line for line in DRILL if line.startswith("pg_restore "))
    await shell(restore, postgres, **names)
    commands = [line.partition("#")[0].split()[1:] for line in DRILL if line.startswith("headwater ")]
    assert [command[0] for command in commands] == ["migrate", "check", "verify", "status"]
    for command in commands:
        code, _, err = await run_command(*command, DATABASE_URL=blank_dsn)
        assert (command, code, err) == (command, 0, "")
    (query,) = (re.findall(r'-c "(.*)"', line)[0] for line in DRILL if line.startswith("psql "))
    copy = await asyncpg.connect(blank_dsn)
    assert await copy.fetchval(query) is not None
    original = await node.database.pool.fetchval("select count(*) from headwater.events")
    assert 55 <= await copy.fetchval("select count(*) from headwater.events") <= original
    await copy.close()
