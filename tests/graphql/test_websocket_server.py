"""Sockets of uvicorn, opened by the client of the library `websockets`."""

import asyncio
import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.listening import Uvicorn, listening
from tests.support.sockets import PATIENCE, PROTOCOL, Server, answer, soon
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from headwater.graphql.frames import CloseCode
from headwater.server.http_server import LARGEST_FRAME, PING_SECONDS

# -- over a real server


def dial(running: Uvicorn, *protocols: str, origin: str | None = None) -> connect:
    return connect(
        f"ws://{running.host}/graphql",
        subprotocols=[Subprotocol(each) for each in protocols] or None,
        origin=Origin(origin) if origin else None,
        proxy=None,
    )


async def close_code_of(client: ClientConnection) -> int | None:
    """Read until the socket is closed, and return the close code."""
    with suppress(ConnectionClosed):
        async with asyncio.timeout(PATIENCE):
            while True:
                await client.recv()
    return client.close_code


@pytest.mark.parametrize("protocols", [(), ("graphql-ws",)], ids=["none", "legacy"])
async def test_a_real_client_with_another_subprotocol_is_closed_with_4406(protocols: tuple[str, ...]) -> None:
    async with listening(Server()) as running, dial(running, *protocols) as client:
        assert await close_code_of(client) == 4406


async def test_a_real_client_of_another_site_gets_403() -> None:
    async with listening(Server()) as running:
        with pytest.raises(InvalidStatus) as refused:
            async with dial(running, PROTOCOL, origin="http://there.test"):
                pass
        assert refused.value.response.status_code == 403
        async with dial(running, PROTOCOL, origin=f"http://{running.host}"):
            pass


async def test_a_real_client_after_close_all_gets_503() -> None:
    server = Server()
    async with listening(server) as running:
        await server.endpoint.close_all()
        with pytest.raises(InvalidStatus) as refused:
            async with dial(running, PROTOCOL):
                pass
        assert refused.value.response.status_code == 503


async def test_a_real_client_gets_text_frames_and_1001_on_shutdown() -> None:
    server = Server()
    async with listening(server) as running, dial(running, PROTOCOL) as client:
        await client.send('{"type":"connection_init"}')
        assert json.loads(await client.recv(decode=None)) == {"type": "connection_ack"}
        await client.send('{"type":"subscribe","id":"1","payload":{"query":"subscription { numbers }"}}')
        server.source.items.put_nowait(1)
        message = await client.recv()
        assert isinstance(message, str)
        assert json.loads(message) == answer("1", numbers=1)
        running.should_exit = True
        assert await close_code_of(client) == 1001
    assert server.source.closed.is_set()


async def test_a_frame_over_256_kib_is_refused_by_the_server() -> None:
    async with listening(Server()) as running, dial(running, PROTOCOL) as client:
        await client.send("x" * (256 * 1024 + 1))
        assert await close_code_of(client) == 1009


def test_the_docs_list_every_close_code() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page, api = ((docs / name).read_text(encoding="utf-8") for name in ("errors.md", "api.md"))
    ours = [code for name, code in vars(CloseCode).items() if name.isupper()]
    too_big = 1009  # sent by uvicorn
    assert list(map(int, re.findall(r"(?m)^\| (\d{4}) \|", page))) == sorted([*ours, too_big])
    assert f"exceeds {LARGEST_FRAME // 1024} KiB" in page
    assert f"pings each socket every {PING_SECONDS:g} seconds" in api


async def test_a_real_client_that_stops_reading_gets_1013_when_it_reads_again() -> None:
    server = Server(send_timeout=0.05)
    async with listening(server) as running, dial(running, PROTOCOL) as client:
        await client.send('{"type":"connection_init"}')
        await client.recv()
        await client.send('{"type":"subscribe","id":"s","payload":{"query":"subscription { numbers }"}}')
        await soon(server.source.opened)
        for number in range(60):  # more than the buffers of both ends hold
            await client.send(f'{{"type":"subscribe","id":"{number}","payload":{{"query":"{{ large }}"}}}}')
        await soon(server.source.closed)
        assert await close_code_of(client) == 1013
