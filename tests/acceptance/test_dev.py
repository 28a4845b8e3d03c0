"""`headwater dev`: everything in one process, from an empty folder."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import run_command
from tests.support.waiting import until
from websockets.exceptions import ConnectionClosed

from headwater.postgres import embedded

ROOT = Path(__file__).parents[2]

REGISTER = """
mutation($email: String!) {
  registerUser(input: { email: $email, name: "Ada" }) {
    ... on RegisterUserAccepted { streamId user { email } }
    ... on EmailTaken { code email }
  }
}
"""
OPEN = """
mutation($owner: UUID!) {
  openAccount(input: { ownerId: $owner, currency: "EUR" }) {
    ... on OpenAccountAccepted { streamId account { balance } }
  }
}
"""
DEPOSIT = """
mutation($account: UUID!, $amount: Decimal!) {
  deposit(input: { accountId: $account, amount: $amount }) { ... on DepositAccepted { account { balance } } }
}
"""
WATCH = "subscription($account: UUID!) { account(accountId: $account) { balance } }"


async def test_a_newcomer_sees_a_deposit_at_once(headwater: Callable[..., Any], sockets: Callable[..., Any]) -> None:
    dev = await headwater("dev")
    user = (await dev.graphql(REGISTER, email="ada@example.org"))["registerUser"]
    assert user["user"] == {"email": "ada@example.org"}
    account = (await dev.graphql(OPEN, owner=user["streamId"]))["openAccount"]["streamId"]
    socket = await sockets(dev)
    await socket.subscribe(WATCH, account=account)
    assert await socket.next() == {"account": {"balance": "0"}}

    deposited = await dev.graphql(DEPOSIT, account=account, amount="12.50")

    assert deposited == {"deposit": {"account": {"balance": "12.50"}}}
    assert await socket.next() == {"account": {"balance": "12.50"}}


async def test_commands_look_at_the_database_of_the_dev_that_runs_here(
    headwater: Callable[..., Any], data: Path, clean_environ: dict[str, str]
) -> None:
    environ = clean_environ | {"HEADWATER_DATA": str(data)}
    assert "DATABASE_URL is not set" in (await run_command("events", "tail", environ=environ))[2]
    dev = await headwater("dev")
    user = (await dev.graphql(REGISTER, email="ada@example.org"))["registerUser"]
    for command in (["events", "tail"], ["verify", "--all"], ["check"], ["status"], ["sagas", "list"]):
        code, out, err = await run_command(*command, environ=environ)
        assert (code, err) == (0, ""), command
        assert user["streamId"] in out or command != ["events", "tail"]
    assert "DATABASE_URL is not set" in (await run_command("serve", environ=environ))[2], "it may stop at any time"


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
async def test_it_stops_cleanly(
    headwater: Callable[..., Any], sockets: Callable[..., Any], with_signal: signal.Signals, blank_dsn: str
) -> None:
    dev = await headwater("dev", DATABASE_URL=blank_dsn)
    socket = await sockets(dev)
    await socket.subscribe(WATCH, account="01980000-0000-7000-8000-000000000001")
    assert await socket.next() == {"account": None}

    assert await dev.stop(with_signal) == 0

    with pytest.raises(ConnectionClosed) as closed:
        await socket.receive()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001


async def test_it_is_stopped_while_its_postgresql_starts(data: Path, clean_environ: dict[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headwater", "dev", "--port", "0"),
        cwd=ROOT,
        env=clean_environ | {"HEADWATER_DATA": str(data)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    await until((data / "lock").exists, 30)
    process.send_signal(signal.SIGINT)
    printed, _ = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, printed) == (0, b"")
    assert embedded.running_dsn(data) is None


@pytest.mark.kills
async def test_what_was_written_is_there_after_a_kill(headwater: Callable[..., Any]) -> None:
    first = await headwater("dev")
    await first.graphql(REGISTER, email="ada@example.org")
    first.process.kill()
    await first.process.wait()

    second = await headwater("dev")

    taken = await second.graphql(REGISTER, email="ADA@example.org")
    assert taken == {"registerUser": {"code": "EMAIL_TAKEN", "email": "ADA@example.org"}}
    assert await second.graphql("{ users { nodes { email } } }") == {"users": {"nodes": [{"email": "ada@example.org"}]}}


async def test_it_says_what_is_where_and_that_nothing_is_protected(
    headwater: Callable[..., Any], blank_dsn: str
) -> None:
    dev = await headwater("dev", DATABASE_URL=blank_dsn)
    rest = await asyncio.wait_for(dev.process.stdout.readuntil(b"Ctrl-C stops it."), 10)
    printed = "".join(dev.printed) + rest.decode()
    assert f"{dev.url}/graphql" in printed
    assert "  Data           the database of DATABASE_URL\n" in printed
    assert "  It listens on this machine only, since there are no permissions yet.\n" in printed
    assert (await dev.get("/health/live")).json() == {"status": "live"}
    assert (await dev.get("/health/ready")).json() == {"status": "ready"}
    assert (await dev.get("/")).headers["location"] == "/graphql"
