"""`headwater dev`: everything in one process, from an empty folder."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import run_command
from tests.support.running import Running
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
STEP = r"^  (\S.*?) \.* ?\d+\.\d s$"
WATCH = "subscription($account: UUID!) { account(accountId: $account) { balance } }"


async def test_a_subscription_shows_a_deposit_at_once(
    headwater: Callable[..., Any], sockets: Callable[..., Any]
) -> None:
    dev = await headwater("dev", python=sys.executable)
    user = (await dev.graphql(REGISTER, email="ada@example.org"))["registerUser"]
    assert user["user"] == {"email": "ada@example.org"}
    account = (await dev.graphql(OPEN, owner=user["streamId"]))["openAccount"]["streamId"]
    socket = await sockets(dev)
    await socket.subscribe(WATCH, account=account)
    assert await socket.next() == {"account": {"balance": "0"}}

    deposited = await dev.graphql(DEPOSIT, account=account, amount="12.50")

    assert deposited == {"deposit": {"account": {"balance": "12.50"}}}
    assert await socket.next() == {"account": {"balance": "12.50"}}


async def test_operators_commands_use_the_database_of_the_dev_that_runs_in_this_folder(
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
    assert "DATABASE_URL is not set" in (await run_command("serve", environ=environ))[2], (
        "`serve` must not use a database that may stop at any time"
    )


def printed_steps(dev: Running) -> list[str]:
    """Return the steps that the start printed, without the paths in them.

    Copying PostgreSQL's programs is left out: it is needed only for root, and only once on a machine.
    """
    steps = [re.sub(r" (in|to) /.*", "", found[1]) for line in dev.printed if (found := re.match(STEP, line))]
    return [step for step in steps if not step.startswith("copying")]


async def test_each_step_of_the_start_is_a_line_with_its_seconds(headwater: Callable[..., Any]) -> None:
    first = await headwater("dev")
    steps = printed_steps(first)
    assert steps == [
        "loading the app",
        "creating the database",
        "starting PostgreSQL",
        "migrating the database",
        "creating read-model tables",
        "starting the server",
    ]
    assert await first.stop() == 0
    second = await headwater("dev")
    assert printed_steps(second) == [step for step in steps if step != "creating the database"]


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_closes_the_sockets_with_1001_and_ends_dev_with_exit_code_0(
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


async def test_a_signal_during_the_start_of_postgresql_stops_both(data: Path, clean_environ: dict[str, str]) -> None:
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
    assert process.returncode == 0
    assert b"Traceback" not in printed
    assert b"Headwater is running" not in printed
    assert embedded.running_dsn(data) is None


@pytest.mark.kills
async def test_committed_data_survives_a_kill_of_dev(headwater: Callable[..., Any]) -> None:
    first = await headwater("dev")
    await first.graphql(REGISTER, email="ada@example.org")
    first.process.kill()
    await first.process.wait()

    second = await headwater("dev")

    taken = await second.graphql(REGISTER, email="ADA@example.org")
    assert taken == {"registerUser": {"code": "EMAIL_TAKEN", "email": "ADA@example.org"}}
    assert await second.graphql("{ users { nodes { email } } }") == {"users": {"nodes": [{"email": "ada@example.org"}]}}


async def test_dev_announces_its_addresses_and_that_there_are_no_permissions(
    headwater: Callable[..., Any], blank_dsn: str
) -> None:
    dev = await headwater("dev", DATABASE_URL=blank_dsn)
    rest = await asyncio.wait_for(dev.process.stdout.readuntil(b"Ctrl-C stops it."), 10)
    printed = "".join(dev.printed) + rest.decode()
    assert f"{dev.url}/graphql" in printed
    assert "  Data           the database of DATABASE_URL\n" in printed
    assert "  It listens on this machine only, since there are no permissions yet.\n" in printed
    assert (await dev.get("/health/live")).json() == {"status": "live"}
    assert (await dev.get("/health/ready")).json() == {"status": "ready", "readable": True, "writable": True}
    assert (await dev.get("/")).headers["location"] == "./graphql"
