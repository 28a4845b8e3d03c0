"""`headwater migrate`, `serve` and `work` as an operator runs them, on an existing PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
from tests.support.commands import run_command
from tests.support.positions import number
from tests.support.waiting import until
from websockets.exceptions import ConnectionClosed

ROOT = Path(__file__).parents[2]

REGISTER = """
mutation($email: String!) {
  registerUser(input: { email: $email, name: "Ada" }) { ... on RegisterUserAccepted { position user { email } } }
}
"""

OPEN = """
mutation($owner: UUID!) {
  openAccount(input: { ownerId: $owner, currency: "EUR" }) {
    ... on OpenAccountAccepted { position account { accountId } }
  }
}
"""

DEPOSIT = """
mutation($account: UUID!) {
  deposit(input: { accountId: $account, amount: 1 }) { ... on DepositAccepted { position account { accountId } } }
}
"""

FREEZE = """
mutation($account: UUID!) {
  freezeAccount(input: { accountId: $account }) { ... on FreezeAccountAccepted { position account { accountId } } }
}
"""

CHANGES = """
subscription($after: Position) {
  accountChanges(filter: { status: { eq: OPEN } }, after: $after) {
    reset position upserted { id balance } removed
  }
}
"""

REGISTER_ONLY = """
mutation($email: String!) {
  registerUser(input: { email: $email, name: "Ada" }) { ... on RegisterUserAccepted { streamId } }
}
"""


async def run(*arguments: str, **environ: str) -> tuple[int, str]:
    """Run a command to its end. Returns the exit code and its output on both streams."""
    code, out, err = await run_command(*arguments, environ=environ)
    return code, out + err


@pytest.fixture
def environ(clean_environ: dict[str, str], dsn: str) -> dict[str, str]:
    """The environment of a deployment on a migrated database."""
    return clean_environ | {"DATABASE_URL": dsn}


@pytest.fixture
def blank_environ(clean_environ: dict[str, str], blank_dsn: str) -> dict[str, str]:
    """The environment of a deployment on an empty database."""
    return clean_environ | {"DATABASE_URL": blank_dsn}


async def test_a_command_returns_the_row_that_a_worker_in_another_process_has_written(
    headwater: Callable[..., Any], blank_environ: dict[str, str]
) -> None:
    assert await run("migrate", **blank_environ) == (0, "The database is up to date.\n")
    url, python = blank_environ["DATABASE_URL"], sys.executable
    serve = await headwater("serve", python=python, DATABASE_URL=url)
    work = await headwater("work", python=python, DATABASE_URL=url)
    assert (await work.get("/health/ready")).json() == {"status": "ready", "readable": True, "writable": True}

    # The worker writes the row; the server reads it at the position of the command.
    done = await serve.graphql(REGISTER, email="ada@example.org")

    position = done["registerUser"].pop("position")
    assert number(position) == 1
    assert done == {"registerUser": {"user": {"email": "ada@example.org"}}}
    assert await work.stop(signal.SIGTERM) == 0
    assert await serve.stop(signal.SIGTERM) == 0


@pytest.mark.kills
async def test_a_subscription_resumes_at_another_server_after_one_was_killed(
    headwater: Callable[..., Any], sockets: Callable[..., Any], environ: dict[str, str], dsn: str
) -> None:
    first, second, _ = await asyncio.gather(
        *(headwater(command, DATABASE_URL=dsn) for command in ("serve", "serve", "work"))
    )

    async def do(mutation: str, **variables: str) -> tuple[str, str]:
        """Run a mutation. Returns the account's id, whose row has the change by then, and the change's position."""
        (done,) = (await second.graphql(mutation, **variables)).values()
        return done["account"]["accountId"], done["position"]

    one, _ = await do(OPEN, owner=str(UUID(int=1)))
    other, opened = await do(OPEN, owner=str(UUID(int=2)))
    socket = await sockets(first)
    await socket.subscribe(CHANGES)
    snapshot = (await socket.next())["accountChanges"]
    assert sorted(row["id"] for row in snapshot.pop("upserted")) == sorted([f"Account:{one}", f"Account:{other}"])
    assert snapshot == {"reset": True, "position": opened, "removed": []}
    _, deposited = await do(DEPOSIT, account=one)
    assert (await socket.next())["accountChanges"] == {
        "reset": False,
        "position": deposited,
        "upserted": [{"id": f"Account:{one}", "balance": "1"}],
        "removed": [],
    }

    first.process.kill()
    with pytest.raises(ConnectionClosed):
        await socket.receive()
    await do(DEPOSIT, account=one)
    await do(DEPOSIT, account=one)
    _, frozen = await do(FREEZE, account=other)

    socket = await sockets(second)
    await socket.subscribe(CHANGES, after=deposited)
    assert (await socket.next())["accountChanges"] == {
        "reset": False,
        "position": frozen,
        "upserted": [{"id": f"Account:{one}", "balance": "3"}],
        "removed": [f"Account:{other}"],
    }
    third, opened = await do(OPEN, owner=str(UUID(int=3)))
    assert (await socket.next())["accountChanges"] == {
        "reset": False,
        "position": opened,
        "upserted": [{"id": f"Account:{third}", "balance": "0"}],
        "removed": [],
    }


async def test_serve_refuses_a_database_that_is_not_migrated(blank_environ: dict[str, str]) -> None:
    code, printed = await run("serve", "--port", "0", **blank_environ)
    assert code == 1
    assert "run `headwater migrate`" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("command", ["serve", "work", "migrate"])
async def test_production_processes_require_database_url(clean_environ: dict[str, str], command: str) -> None:
    code, printed = await run(command, **clean_environ)
    assert code == 1
    assert "DATABASE_URL is not set" in printed


@pytest.mark.parametrize("command", ["serve", "work", "migrate"])
async def test_an_unreachable_database_is_reported_as_the_setting_at_fault(
    clean_environ: dict[str, str], command: str
) -> None:
    code, printed = await run(command, **clean_environ, DATABASE_URL="postgresql://127.0.0.1:1/nothing")
    assert code == 1
    assert "Traceback" not in printed
    assert "DATABASE_URL" in printed


@pytest.mark.parametrize(
    ("app", "message"),
    [
        ("bank.main", "MODULE:NAME"),
        ("bank.nothing:app", "there is no module bank.nothing"),
        ("bank.main:nothing", "no attribute 'nothing'"),
        ("bank.main:Path", "not an App"),
    ],
)
async def test_an_app_that_cannot_be_loaded_is_an_error_without_a_traceback(
    clean_environ: dict[str, str], app: str, message: str
) -> None:
    code, printed = await run("schema", "--app", app, **clean_environ)
    assert code == 1
    assert message in printed
    assert "Traceback" not in printed


async def test_a_setting_that_cannot_be_parsed_stops_the_start(clean_environ: dict[str, str]) -> None:
    code, printed = await run("dev", **clean_environ, HEADWATER_PORT="eighty")
    assert code == 1
    assert "HEADWATER_PORT" in printed
    assert "eighty" in printed


async def test_a_port_in_use_is_reported_with_the_options_to_change_it(
    headwater: Callable[..., Any], environ: dict[str, str]
) -> None:
    first = await headwater("serve", DATABASE_URL=environ["DATABASE_URL"])
    code, printed = await run("serve", "--port", first.url.rpartition(":")[2], **environ)
    assert code == 1
    assert "Address already in use; choose another with --host and --port" in printed
    assert "Traceback" not in printed


async def test_readiness_fails_while_the_database_is_unreachable_and_recovers(
    headwater: Callable[..., Any], environ: dict[str, str]
) -> None:
    serve = await headwater("serve", DATABASE_URL=environ["DATABASE_URL"])
    name = environ["DATABASE_URL"].partition("?")[0].rpartition("/")[2]
    admin = await asyncpg.connect(environ["DATABASE_URL"].replace(f"/{name}?", "/postgres?"))
    await admin.execute(f"alter database {name} with allow_connections false")
    await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name)

    async def is_ready() -> bool:
        return bool((await serve.get("/health/ready")).status_code == 200)

    async def is_not_ready() -> bool:
        return not await is_ready()

    await until(is_not_ready)
    found = (await serve.get("/health/ready")).json()
    assert "database" in found.pop("troubles")
    assert found == {"status": "not ready", "readable": False, "writable": False}
    assert (await serve.get("/health/live")).status_code == 200
    await admin.execute(f"alter database {name} with allow_connections true")
    await admin.close()
    await until(is_ready, 30)


STOPS_WITHIN = 5.0


@pytest.fixture
async def launch(environ: dict[str, str]) -> AsyncIterator[Callable[..., Any]]:
    """Starts `headwater ...` on the test's database without waiting for it; kills it after the test."""
    processes: list[asyncio.subprocess.Process] = []

    async def start(*arguments: str, stdout: int = asyncio.subprocess.PIPE, **more: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "headwater", *arguments),
            env=environ | more,
            cwd=ROOT,
            stdout=stdout,
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(process: asyncio.subprocess.Process, with_signal: int) -> tuple[int, str, str]:
    """Send a signal. Returns the exit code, standard output and standard error; fails if the process does not end."""
    process.send_signal(with_signal)
    out, err = await asyncio.wait_for(process.communicate(), STOPS_WITHIN)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def waits(connection: asyncpg.Connection) -> bool:
    """True if another connection waits for a lock, as for what this one has locked."""
    await connection.execute("select pg_stat_clear_snapshot()")  # a transaction would see the same statistics again
    waiting = "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    return bool(await connection.fetchval(f"select exists ({waiting})"))


@pytest.mark.parametrize(
    "command, with_signal", [("serve", signal.SIGTERM), ("work", signal.SIGINT), ("dev", signal.SIGINT)]
)
async def test_a_signal_during_the_start_ends_the_process_cleanly(
    launch: Callable[..., Any], environ: dict[str, str], dsn: str, command: str, with_signal: signal.Signals
) -> None:
    connection = await asyncpg.connect(dsn)
    async with connection.transaction():
        await connection.execute("select from headwater.counted for update")
        process = await launch(command, "--port", "0")
        await until(lambda: waits(connection), 30)
        code, out, err = await ended(process, with_signal)
        said = [json.loads(line)["message"].split(" within ")[0] for line in err.splitlines()]
        assert (code, said) == (0, [f"stopping: {with_signal.name} was received", "stopped"])
        assert "Headwater is running" not in out
    await connection.close()


@pytest.mark.parametrize("command", ["events tail --after 0", f"events trace {UUID(int=1)}", "check"])
async def test_ctrl_c_ends_a_command_that_waits_for_the_database(
    launch: Callable[..., Any], environ: dict[str, str], dsn: str, command: str
) -> None:
    connection = await asyncpg.connect(dsn)
    async with connection.transaction():
        tables = "headwater.head, headwater.events, headwater.counted"
        await connection.execute(f"lock table {tables} in access exclusive mode")
        process = await launch(*command.split())
        await until(lambda: waits(connection), 30)
        assert await ended(process, signal.SIGINT) == (130, "", "")
    await connection.close()


async def test_a_mutation_that_cannot_be_written_before_the_shutdown_gets_outcome_unknown(
    headwater: Callable[..., Any], environ: dict[str, str], dsn: str
) -> None:
    """The process ends in time, and the client learns that its command may have been written."""
    serve = await headwater("serve", DATABASE_URL=dsn)
    connection = await asyncpg.connect(dsn)
    async with httpx.AsyncClient(base_url=serve.url, timeout=20) as client, connection.transaction():
        await connection.execute("select from headwater.head for update")
        body = {"query": REGISTER_ONLY, "variables": {"email": "ada@example.org"}}
        answer = asyncio.create_task(client.post("/graphql", json=body))
        await until(lambda: waits(connection), 30)
        assert await serve.stop(signal.SIGTERM) == 0
        response = await answer
        assert response.status_code == 200
        assert [each["extensions"]["code"] for each in response.json()["errors"]] == ["OUTCOME_UNKNOWN"]
    await connection.close()


async def test_a_dev_that_cannot_listen_does_not_migrate_the_database(
    headwater: Callable[..., Any], blank_environ: dict[str, str], blank_dsn: str
) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    code, printed = await run("dev", "--port", str(taken.getsockname()[1]), **blank_environ)
    taken.close()
    assert (code, "cannot listen" in printed) == (1, True)
    connection = await asyncpg.connect(blank_dsn)
    assert await connection.fetchval("select to_regclass('headwater.events') is null")
    await connection.close()


async def test_a_closed_pipe_ends_a_command_quietly(launch: Callable[..., Any], environ: dict[str, str]) -> None:
    for command in (["status"], ["schema"], ["events", "tail"]):
        read, write = os.pipe()
        os.close(read)
        process = await launch(*command, stdout=write)
        os.close(write)
        assert (await asyncio.wait_for(process.wait(), 30), await process.stderr.read()) == (0, b""), command


async def test_a_shutdown_answers_every_request_in_progress(
    headwater: Callable[..., Any], environ: dict[str, str], dsn: str
) -> None:
    serve = await headwater("serve", DATABASE_URL=dsn)
    async with httpx.AsyncClient(base_url=serve.url, limits=httpx.Limits(max_connections=20)) as client:
        answered: list[str] = []
        refused = asyncio.Event()

        async def register(number: int) -> None:
            while not refused.is_set():
                email = f"{number}.{len(answered)}@example.org"
                try:
                    response = await client.post(
                        "/graphql", json={"query": REGISTER_ONLY, "variables": {"email": email}}
                    )
                except httpx.TransportError:  # new connections are refused, and idle ones are closed
                    refused.set()
                else:
                    assert response.status_code == 200, response.text
                    answered.append(response.json()["data"]["registerUser"]["streamId"])

        clients = [asyncio.create_task(register(number)) for number in range(20)]
        while len(answered) < 100:
            await asyncio.wait(clients, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
        assert await serve.stop(signal.SIGTERM) == 0
        await asyncio.gather(*clients)
    connection = await asyncpg.connect(dsn)
    written = await connection.fetch("select stream_id from headwater.events")
    await connection.close()
    assert {str(row[0]) for row in written} == set(answered)
