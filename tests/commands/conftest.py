"""Fixtures: processes with a dispatcher of their own, all on the log of the test's database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from tests.support.dispatching import CountingLog, Process, Start, Write

from bank.main import app
from headwater.commands.dispatcher import ATTEMPTS, Dispatcher
from headwater.domain.feature import Domain
from headwater.eventstore.appender import Appender
from headwater.eventstore.log import append
from headwater.eventstore.positions import Positions
from headwater.postgres.database import Database
from headwater.supervisor import Supervisor


@pytest.fixture
async def process(dsn: str) -> AsyncIterator[Start]:
    """Starts processes on the test's database, and stops them after the test."""
    async with AsyncExitStack() as stack:

        async def start(
            domain: Domain = app.domain,
            *,
            cache: int = 1000,
            write: Write = append,
            attempts: int = ATTEMPTS,
            sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        ) -> Process:
            database = await stack.enter_async_context(Database(dsn, pool_size=4))
            supervisor = await stack.enter_async_context(Supervisor())
            appender = Appender(database, Positions(), write=write)
            supervisor.start("appender", appender.run)
            log = CountingLog(database.pool, domain)
            dispatcher = Dispatcher(domain, log, appender, cache=cache, attempts=attempts, sleep=sleep)
            return Process(dispatcher, appender, log)

        yield start


@pytest.fixture
async def bank(process: Start) -> Process:
    """A process of the bank."""
    return await process()


@pytest.fixture
async def other(process: Start) -> Process:
    """Another process of the bank, on the same log."""
    return await process()
