"""`headwater migrate`, `serve` and `work` as an operator runs them, on a PostgreSQL that is there already."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import asyncpg
import httpx
import pytest
from tests.commands import run_command
from tests.waiting import until

REGISTER = """
mutation($email: String!) {
  registerUser(input: { email: $email, name: "Ada" }) { ... on RegisterUserAccepted { position user { email } } }
}
"""

REGISTER_ONLY = """
mutation($email: String!) {
  registerUser(input: { email: $email, name: "Ada" }) { ... on RegisterUserAccepted { streamId } }
}
"""


async def run(*arguments: str, **environ: str) -> tuple[int, str]:
    """Run a command of the CLI to its end: its exit code, and what it printed."""
    code, out, err = await run_command(*arguments, environ=environ)
    return code, out + err


@pytest.fixture
def environ(clean_environ: dict[str, str], blank_dsn: str) -> dict[str, str]:
    """The environment of a deployment on an empty database."""
    return clean_environ | {"DATABASE_URL": blank_dsn}


async def test_migrate_serve_and_work(headwater: Callable[..., Any], environ: dict[str, str]) -> None:
    assert await run("migrate", **environ) == (0, "The database is up to date.\n")
    serve = await headwater("serve", DATABASE_URL=environ["DATABASE_URL"])
    work = await headwater("work", DATABASE_URL=environ["DATABASE_URL"])
    assert (await work.get("/health/ready")).json() == {"status": "ready"}

    # The row is made by the worker and read at the command's position by the server.
    done = await serve.graphql(REGISTER, email="ada@example.org")

    assert done == {"registerUser": {"position": "1", "user": {"email": "ada@example.org"}}}
    assert await work.stop(signal.SIGTERM) == 0
    assert await serve.stop(signal.SIGTERM) == 0


async def test_serve_refuses_a_database_that_is_not_migrated(environ: dict[str, str]) -> None:
    code, printed = await run("serve", "--port", "0", **environ)
    assert code == 1
    assert "run `headwater migrate`" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("command", ["serve", "work", "migrate"])
async def test_a_database_must_be_named(clean_environ: dict[str, str], command: str) -> None:
    code, printed = await run(command, **clean_environ)
    assert code == 1
    assert "DATABASE_URL is not set" in printed


@pytest.mark.parametrize("command", ["serve", "work", "migrate"])
async def test_a_database_that_is_away(clean_environ: dict[str, str], command: str) -> None:
    code, printed = await run(command, **clean_environ, DATABASE_URL="postgresql://127.0.0.1:1/nothing")
    assert code == 1
    assert "Traceback" not in printed
    assert "DATABASE_URL" in printed


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("bank.main", "MODULE:NAME"),
        ("bank.nothing:app", "No module named"),
        ("bank.main:nothing", "no attribute 'nothing'"),
        ("bank.main:Path", "not an App"),
    ],
)
async def test_an_app_that_is_not_one(clean_environ: dict[str, str], app: str, said: str) -> None:
    code, printed = await run("schema", "--app", app, **clean_environ)
    assert code == 1
    assert said in printed
    assert "Traceback" not in printed


async def test_a_wrong_setting_stops_the_start(clean_environ: dict[str, str]) -> None:
    code, printed = await run("dev", **clean_environ, HEADWATER_PORT="eighty")
    assert code == 1
    assert "HEADWATER_PORT" in printed
    assert "eighty" in printed


async def test_a_port_that_is_taken(headwater: Callable[..., Any], environ: dict[str, str]) -> None:
    assert (await run("migrate", **environ))[0] == 0
    first = await headwater("serve", DATABASE_URL=environ["DATABASE_URL"])
    code, printed = await run("serve", "--port", first.url.rpartition(":")[2], **environ)
    assert code == 1
    assert "Address already in use; choose another with --host and --port" in printed
    assert "Traceback" not in printed


async def test_readiness_shows_a_database_that_went_away(
    headwater: Callable[..., Any], environ: dict[str, str]
) -> None:
    assert (await run("migrate", **environ))[0] == 0
    serve = await headwater("serve", DATABASE_URL=environ["DATABASE_URL"])
    name = environ["DATABASE_URL"].partition("?")[0].rpartition("/")[2]
    admin = await asyncpg.connect(environ["DATABASE_URL"].replace(f"/{name}?", "/postgres?"))
    await admin.execute(f"alter database {name} with allow_connections false")
    await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name)

    ready = await serve.get("/health/ready")

    assert ready.status_code == 503
    assert "database" in ready.json()["troubles"]
    assert (await serve.get("/health/live")).status_code == 200
    await admin.execute(f"alter database {name} with allow_connections true")
    await admin.close()

    async def is_ready() -> bool:
        return bool((await serve.get("/health/ready")).status_code == 200)

    await until(is_ready, 30)


async def test_requests_under_way_get_their_answer(
    headwater: Callable[..., Any], environ: dict[str, str], blank_dsn: str
) -> None:
    assert (await run("migrate", **environ))[0] == 0
    serve = await headwater("serve", DATABASE_URL=blank_dsn)
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
                except httpx.TransportError:  # nobody new is let in, and kept connections are closed between requests
                    refused.set()
                else:
                    assert response.status_code == 200, response.text
                    answered.append(response.json()["data"]["registerUser"]["streamId"])

        clients = [asyncio.create_task(register(number)) for number in range(20)]
        while len(answered) < 100:
            await asyncio.wait(clients, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
        assert await serve.stop(signal.SIGTERM) == 0
        await asyncio.gather(*clients)
    connection = await asyncpg.connect(blank_dsn)
    written = await connection.fetch("select stream_id from headwater.events")
    await connection.close()
    assert {str(row[0]) for row in written} == set(answered)
