"""Starlette, FastAPI and Litestar mount the app: its page, its API and its sockets work under a prefix."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urljoin

import asyncpg
import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from litestar import Litestar, asgi
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp
from tests.support.bank_api import QUICK, app
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from headwater import Settings, replace
from headwater.server.asgi import MountedApp

ASK = {"query": 'mutation { registerUser(input: { email: "ada@example.com", name: "Ada" }) { __typename } }'}
PREFIX = "/some/bank"


def starlette(mounted: MountedApp, *, lifespan: bool) -> ASGIApp:
    return Starlette(routes=[Mount(PREFIX, mounted)], lifespan=mounted.lifespan if lifespan else None)


def fastapi(mounted: MountedApp, *, lifespan: bool) -> ASGIApp:
    host = FastAPI(lifespan=mounted.lifespan if lifespan else None)
    host.mount(PREFIX, mounted)
    return host


def litestar(mounted: MountedApp, *, lifespan: bool) -> ASGIApp:
    handler = asgi(PREFIX, is_mount=True, copy_scope=True)(mounted)
    host: ASGIApp = cast("Any", Litestar([handler], lifespan=[mounted.lifespan] if lifespan else []))
    return host


def alone(mounted: MountedApp, *, lifespan: bool) -> ASGIApp:
    return mounted


HOSTS = [(starlette, PREFIX), (fastapi, PREFIX), (litestar, PREFIX), (alone, "")]


class Serving(uvicorn.Server):
    """A uvicorn server as a user runs it, with a signal when it is ready."""

    def __init__(self, host: ASGIApp) -> None:
        super().__init__(uvicorn.Config(host, port=0, log_config=None))
        self.ready = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@asynccontextmanager
async def serving(host: ASGIApp) -> AsyncIterator[str]:
    """Serve a host application, and yield its authority."""
    server = Serving(host)
    task = asyncio.create_task(server._serve())
    ready = asyncio.create_task(server.ready.wait())
    await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
    try:
        yield "{}:{}".format(*server.servers[0].sockets[0].getsockname())
    finally:
        server.should_exit = True
        await task


@pytest.mark.parametrize(("host", "prefix"), HOSTS, ids=["starlette", "fastapi", "litestar", "alone"])
async def test_a_host_serves_the_page_the_api_and_sockets(host: Callable[..., ASGIApp], prefix: str, dsn: str) -> None:
    mounted = app.asgi(replace(QUICK, database_url=dsn))
    async with (
        serving(host(mounted, lifespan=True)) as authority,
        httpx.AsyncClient(base_url=f"http://{authority}{prefix}/") as client,
    ):
        assert (await client.get("health/ready")).json()["status"] == "ready"  # opened before the first request
        url = f"ws://{authority}{prefix}/graphql"
        async with connect(url, subprotocols=[Subprotocol("graphql-transport-ws")], proxy=None) as socket:
            await socket.send('{"type": "connection_init"}')
            assert json.loads(await socket.recv()) == {"type": "connection_ack"}
            query = "subscription { userChanges { upserted { name } } }"
            await socket.send(json.dumps({"type": "subscribe", "id": "1", "payload": {"query": query}}))
            assert '"upserted":[]' in str(await socket.recv())
            answer = await client.post("graphql", json=ASK)
            assert answer.json() == {"data": {"registerUser": {"__typename": "RegisterUserAccepted"}}}
            assert '"upserted":[{"name":"Ada"}]' in str(await socket.recv())

        page = await client.get("graphql", headers={"accept": "text/html"})
        linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(linked) > 2
        for link in (*linked, "./explorer/examples.json"):
            assert (await client.get(urljoin(str(page.url), link))).status_code == 200, link
        home = await client.get("")
        assert home.next_request is not None
        assert home.next_request.url.path == f"{prefix}/graphql"


@pytest.mark.parametrize("host", [starlette, fastapi, litestar])
async def test_without_a_lifespan_the_first_request_opens_the_app(host: Callable[..., ASGIApp], dsn: str) -> None:
    mounted = app.asgi(replace(QUICK, database_url=dsn))
    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(host(mounted, lifespan=False)), base_url="http://localhost"
    )
    async with client:
        answers = await asyncio.gather(*(client.post(f"{PREFIX}/graphql", json=ASK) for _ in range(3)))
        assert {answer.status_code for answer in answers} == {200}
    async with mounted.lifespan():
        pass  # closes what the requests opened


def test_the_end_of_the_event_loop_closes_the_app_and_another_loop_opens_it_again(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    mounted = app.asgi(replace(QUICK, database_url=dsn))

    async def asked() -> int:
        transport = httpx.ASGITransport(mounted)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.post("/graphql", json=ASK)).status_code

    assert [asyncio.run(asked()), asyncio.run(asked())] == [200, 200]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []

    async def workers() -> int:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval("select count(*) from headwater.workers")  # type: ignore[no-any-return]  # count(*)
        finally:
            await connection.close()

    assert asyncio.run(workers()) == 0  # both gave their leases back


async def test_an_app_that_cannot_be_opened_is_answered_503_and_tried_again(
    dsn: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = Settings(database_url=f"postgresql:///nowhere?host={tmp_path}")
    mounted = app.asgi(nowhere)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(mounted), base_url="http://localhost") as client:
        answer = await client.post("/graphql", json=ASK)
        assert (answer.status_code, answer.json()["errors"][0]["extensions"]) == (503, {"code": "UNAVAILABLE"})
        assert "DATABASE_URL: the database cannot be reached" in caplog.text
        assert (await client.get("/health/live")).status_code == 503
    with pytest.raises(Exception, match="the database cannot be reached"):
        async with mounted.lifespan():
            pass
