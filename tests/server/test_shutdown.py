"""A process whose database does not answer: readiness, metrics and shutdown keep their deadlines."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support.executing import accepted
from tests.support.proxy import Proxy
from tests.support.waiting import until

from bank.main import app as bank
from bank.users.domain import RegisterUser
from headwater.commands.dispatcher import Accepted
from headwater.config import Settings
from headwater.errors import OutcomeUnknown
from headwater.server.exporters import prometheus
from headwater.server.node import Node


async def register(node: Node, email: str) -> Accepted:
    return await accepted(node, RegisterUser(user_id=uuid4(), email=email, name="Ada"))


@pytest.mark.parametrize("serve, work", [(True, False), (False, True), (True, True)])
async def test_a_shutdown_keeps_its_deadline_while_the_database_does_not_answer(
    proxy: Proxy, serve: bool, work: bool, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(Settings(), shutdown_seconds=1.0, lease_seconds=0.6, poll_seconds=0.1)
    loop = asyncio.get_running_loop()
    async with Node(bank, settings, proxy.dsn, serve=serve, work=work) as node:
        if work:
            await until(lambda: len(node.leases.held) == len(node.worker.runs))
        await register(node, "ada@example.org")
        proxy.silent = True
        sent = asyncio.create_task(register(node, "grace@example.org"))
        await until(lambda: node.appender.writing and proxy.ignored > 2)
        began = loop.time()
        await node.answered()
        with pytest.raises(OutcomeUnknown):
            await sent
    assert loop.time() - began < 3
    assert not [record for record in caplog.records if record.exc_info], "only the database failed"


async def test_a_process_is_not_ready_while_the_database_does_not_answer(proxy: Proxy) -> None:
    settings = replace(Settings(), shutdown_seconds=1.0)
    async with Node(bank, settings, proxy.dsn, serve=True, work=False, probe_seconds=0.2) as node:
        assert await node.troubles() == {}
        proxy.silent = True
        for _ in range(4):  # more checks than the probe has connections
            async with asyncio.timeout(5):
                assert (await node.troubles())["database"] == "TimeoutError: it took longer than 0.2 s"


async def test_the_metrics_report_that_the_database_does_not_answer(proxy: Proxy) -> None:
    settings = replace(Settings(), shutdown_seconds=1.0)
    async with Node(bank, settings, proxy.dsn, serve=True, work=False, probe_seconds=0.2) as node:
        assert b"headwater_database_up 1.0" in await prometheus.text_of(node, 0)
        proxy.silent = True
        for _ in range(4):  # more checks than the probe has connections
            async with asyncio.timeout(5):
                assert b"headwater_database_up 0.0" in await prometheus.text_of(node, 0)


async def test_a_shutdown_answers_commands_and_gives_back_leases(dsn: str, connection: asyncpg.Connection) -> None:
    async with Node(bank, Settings(), dsn, serve=True, work=True) as node:
        await until(lambda: len(node.leases.held) == len(node.worker.runs))
        sent = asyncio.create_task(register(node, "ada@example.org"))
        await until(lambda: node.appender.waiting or sent.done())
    assert (await sent).position == 1
    owned = await connection.fetchval("select count(*) from headwater.projections where owner is not null")
    kept = [await connection.fetchval(f"select count(*) from headwater.{name}") for name in ("workers", "processes")]
    assert [owned, *kept] == [0, 0, 0]
