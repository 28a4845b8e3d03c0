"""What all benchmarks share: a server that waits for the disk, databases, and a history of the bank in them."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import asyncpg
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from bank.accounts.domain import Deposit, OpenAccount
from bank.main import app
from headwater import App
from headwater.config import Settings
from headwater.ids import new_id
from headwater.postgres import embedded
from headwater.postgres.embedded import EmbeddedPostgres
from headwater.postgres.migrations import migrate
from headwater.projections.generations import prepare_views
from headwater.server.node import Node

FLOOR = Path(__file__).parent
CENT = Decimal("0.01")


@dataclass
class Figure:
    """A line of the report: a measured value, and the floor or peer beside it."""

    name: str
    value: str
    beside: str = ""
    ratio: float | None = None
    wanted: float | None = None

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f"{self.ratio:6.2f} x"
        wanted = "" if self.wanted is None else f"(wanted {self.wanted:g} x)"
        return f"  {self.name:<52} {self.value:>22}  {self.beside:<34} {ratio:>8} {wanted}"


@contextmanager
def server() -> Iterator[EmbeddedPostgres]:
    """Start a PostgreSQL as in production: every commit is on the disk before it is answered."""
    options = {"fsync": "on", "shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}
    with embedded.temporary(options=options) as postgres:
        yield postgres


async def create(postgres: EmbeddedPostgres, name: str, of: App = app) -> str:
    """Create a migrated database with the tables of an app, by default the bank; return its DSN."""
    connection = await asyncpg.connect(postgres.dsn())
    await connection.execute(f"drop database if exists {name} with (force)")
    await connection.execute(f"create database {name}")
    await connection.close()
    dsn = postgres.dsn(name)
    await migrate(dsn)
    await prepare_views(dsn, of.domain.views)
    return dsn


@asynccontextmanager
async def node(dsn: str, *, serve: bool = True, work: bool = False, of: App = app) -> AsyncIterator[Node]:
    """Run a node of an app, by default the bank, in this process."""
    async with Node(of, Settings(), dsn, serve=serve, work=work) as running:
        yield running


@dataclass
class Serving:
    """A server process. url: of its GraphQL endpoint."""

    url: str
    process_id: int

    def memory(self) -> int:
        """Return the bytes of memory that the process holds (Linux only)."""
        pages = int(Path(f"/proc/{self.process_id}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def files(self) -> int:
        """Return how many files and sockets the process has open (Linux only)."""
        return len(list(Path(f"/proc/{self.process_id}/fd").iterdir()))


@asynccontextmanager
async def serving(dsn: str, **settings: str) -> AsyncIterator[Serving]:
    """Run `headwater dev` on a database, in a process of its own. settings: environment variables."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headwater", "dev", "--app", "bank.main:app", "--port", "0"),
        env=os.environ | {"DATABASE_URL": dsn, "HEADWATER_LOG_LEVEL": "warning"} | settings,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            found = re.search(rb"ws(://\S+/graphql)", line)
            if found:
                yield Serving(f"http{found[1].decode()}", process.pid)
                return
        raise RuntimeError("the server did not start")
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def socket(url: str) -> AsyncIterator[ClientConnection]:
    """Open an admitted socket of a GraphQL endpoint."""
    protocol = Subprotocol("graphql-transport-ws")
    async with connect(url.replace("http", "ws", 1), subprotocols=[protocol], compression=None) as connection:
        await connection.send('{"type": "connection_init"}')
        await connection.recv()
        yield connection


async def open_accounts(running: Node, count: int) -> list[UUID]:
    """Open accounts, and return their ids."""
    ids = [new_id() for _ in range(count)]
    owner = new_id()
    await asyncio.gather(
        *(running.dispatcher.execute(OpenAccount(account_id=each, owner_id=owner, currency="EUR")) for each in ids)
    )
    return ids


async def fill(dsn: str, events: int, streams: int) -> None:
    """Fill the log with deposits by SQL: event n is on stream n mod `streams`."""
    connection = await asyncpg.connect(dsn)
    await connection.execute((FLOOR / "fill.sql").read_text().format(events=events, streams=streams))
    await connection.execute("vacuum analyze headwater.events")
    await connection.execute("checkpoint")
    await connection.close()


async def rate(callers: int, seconds: float, call: Callable[[int], Awaitable[object]]) -> float:
    """Return calls a second, with a number of callers that each wait for their answer."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    done = 0

    async def caller(number: int) -> None:
        nonlocal done
        while loop.time() < end:
            await call(number)
            done += 1

    started = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    return done / (time.perf_counter() - started)


def median(values: list[float]) -> float:
    """Return the median of several rounds, because the machine is noisy."""
    return statistics.median(values)


def ratio(values: list[float], beside: list[float]) -> float:
    """Return the median of the ratios of the rounds."""
    return median([value / other for value, other in zip(values, beside, strict=True)])


def deposit(account: UUID) -> Deposit:
    """Return a command that leaves one event."""
    return Deposit(account_id=account, amount=CENT)
