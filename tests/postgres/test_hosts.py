"""A URL with several servers: one that is switched off, or a standby, does not keep a process from the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from headwater.postgres.database import Database
from headwater.postgres.hosts import hosts_of, open_connection


@pytest.fixture
async def silent() -> AsyncIterator[int]:
    """The port of a server that accepts connections and never answers, as one whose machine has stopped."""
    over = asyncio.Event()

    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    server = await asyncio.start_server(ignore, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    over.set()
    server.close()
    await server.wait_closed()


def with_hosts(dsn: str, hosts: str, ports: str) -> str:
    """Return the URL with several servers. OWN stands for the test's own."""
    own = parse_qs(urlsplit(dsn).query)
    port = own.get("port", ["5432"])[0]
    base = dsn.partition("?")[0]
    return f"{base}?host={hosts.replace('OWN', own['host'][0])}&port={ports.replace('OWN', port)}"


@pytest.mark.parametrize("order", ["first", "last"])
async def test_a_server_that_never_answers_is_left_behind(dsn: str, silent: int, order: str) -> None:
    hosts, ports = ("127.0.0.1,OWN", f"{silent},OWN") if order == "first" else ("OWN,127.0.0.1", f"OWN,{silent}")
    async with asyncio.timeout(5):
        connection = await open_connection(with_hosts(dsn, hosts, ports), timeout=60)
    assert await connection.fetchval("select 1") == 1
    await connection.close()


async def test_a_database_opens_every_kind_of_connection_past_a_silent_server(dsn: str, silent: int) -> None:
    several = with_hosts(dsn, "127.0.0.1,OWN", f"{silent},OWN")
    async with asyncio.timeout(10), Database(several, pool_size=1) as database:
        assert await database.pool.fetchval("select 1") == 1
        connection = await database.connect_to_write("appender", seconds=5)
        connection.terminate()


async def test_a_standby_is_passed_over_for_the_server_that_can_be_written(dsn: str) -> None:
    with pytest.raises(asyncpg.TargetServerAttributeNotMatched):
        await open_connection(with_hosts(dsn, "OWN,OWN", "OWN,OWN") + "&target_session_attrs=standby")
    connection = await open_connection(with_hosts(dsn, "OWN,OWN", "OWN,OWN") + "&target_session_attrs=read-write")
    await connection.close()


async def test_the_error_is_raised_when_no_server_answers(dsn: str, silent: int) -> None:
    with pytest.raises(TimeoutError):
        await open_connection(with_hosts(dsn, "127.0.0.1,127.0.0.1", f"1,{silent}"), timeout=0.5)
    with pytest.raises(ConnectionRefusedError):
        await open_connection(with_hosts(dsn, "127.0.0.1,127.0.0.1", "1,1"), timeout=5)


@pytest.mark.parametrize(
    "dsn, hosts",
    [
        ("postgresql://user:p@db.example/name", [("db.example", 5432)]),
        (
            "postgresql://user@a,b:5433,[::1]:5434,[::2]/name?x=y",
            [("a", 5432), ("b", 5433), ("::1", 5434), ("::2", 5432)],
        ),
        ("postgresql:///name?host=/run/a,/run/b&port=1,2", [("/run/a", 1), ("/run/b", 2)]),
        ("postgresql://a,b/name?port=6000", [("a", 6000), ("b", 6000)]),
    ],
)
def test_the_servers_of_a_url(dsn: str, hosts: list[tuple[str, int]]) -> None:
    assert hosts_of(dsn) == hosts
