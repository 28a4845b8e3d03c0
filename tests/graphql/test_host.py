"""A server on a loopback address answers only requests to the names of this machine."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any, Protocol

import httpx
import pytest
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from headwater.cli.arguments import parser
from headwater.config import Settings
from headwater.server.http_server import Server, listen, server_of, url_of


async def _page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("in")


async def _socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("in")
    await websocket.close()


app = Starlette(routes=[Route("/", _page), WebSocketRoute("/socket", _socket)])


async def _farewell() -> None:
    return None


class Serving(Protocol):
    def __call__(self, **settings: Any) -> Server: ...


@pytest.fixture
def server() -> Iterator[Serving]:
    """Return a function that makes servers, which listen but are not started."""
    with ExitStack() as stack:

        def server(**given: Any) -> Server:
            settings = replace(Settings(), port=0, **given)
            return server_of(app, stack.enter_context(closing(listen(settings))), settings, _farewell)

        yield server


@pytest.mark.parametrize("blank", ["", " "])
@pytest.mark.parametrize("command", ["dev", "serve", "work"])
def test_the_command_line_refuses_an_empty_host(command: str, blank: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty host would listen on every address of the machine."""
    with pytest.raises(SystemExit) as ended:
        parser().parse_args([command, "--host", blank])
    assert ended.value.code == 2
    assert "argument --host: it is empty" in capsys.readouterr().err


async def status_of(server: Server, host: str) -> int:
    transport = httpx.ASGITransport(server.config.app)  # type: ignore[arg-type]  # uvicorn leaves its kind open
    async with httpx.AsyncClient(transport=transport, base_url="http://any") as client:
        return (await client.get("/", headers={"host": host})).status_code


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:1", "127.8.9.1", "[::1]", "[::1]:8000", "localhost:443"],
)
@pytest.mark.parametrize("listening", ["127.0.0.1", "localhost", "::1", "127.1", "127.8.9.1"])
async def test_a_server_on_loopback_answers_requests_for_loopback_hosts(
    server: Serving, listening: str, host: str
) -> None:
    assert await status_of(server(host=listening), host) == 200


FOREIGN = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil@localhost",
    "localhost@evil.example",
    "192.168.0.1",
    "[::2]",
    "[::1",
    "localhost/evil.example",
    "localhost, evil.example",
    "",
]


@pytest.mark.parametrize("host", FOREIGN)
async def test_a_server_on_loopback_refuses_other_hosts_with_421(server: Serving, host: str) -> None:
    assert await status_of(server(), host) == 421


@pytest.mark.parametrize("written", ["127.1", "127.8.9.1", "2130706433", "0x7f.1", "LocalHost", "::1"])
async def test_any_spelling_of_a_loopback_address_counts_as_loopback(server: Serving, written: str) -> None:
    listening = server(host=written)
    assert await status_of(listening, "evil.example") == 421
    assert await status_of(listening, "localhost:8000") == 200
    assert await status_of(listening, f"{written}:8000" if written != "::1" else "[::1]:8000") == 200


async def test_a_name_that_resolves_to_a_loopback_address_counts_as_loopback() -> None:
    """The address of the listening socket decides, not the text that it was configured with."""
    settings = replace(Settings(), host="bank.internal", port=0)
    with socket.create_server(("127.0.1.1", 0)) as resolved:
        listening = server_of(app, resolved, settings, _farewell)
        assert await status_of(listening, "evil.example") == 421
        assert await status_of(listening, "localhost:8000") == 200
        assert await status_of(listening, "bank.internal:8000") == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0"])
async def test_a_server_on_all_interfaces_answers_requests_for_any_host(server: Serving, host: str) -> None:
    assert await status_of(server(host=host), "bank.example") == 200


async def test_a_server_on_loopback_answers_requests_for_the_hosts_of_allowed_origins(server: Serving) -> None:
    behind = server(allowed_origins=("https://Bank.example",))
    assert await status_of(behind, "bank.example") == 200
    assert await status_of(behind, "evil.example") == 421


async def test_a_real_server_on_loopback_checks_the_host_of_requests_and_websockets() -> None:
    settings = replace(Settings(), port=0)
    listening = listen(settings)
    real = server_of(app, listening, settings, _farewell)
    url = url_of(listening)
    task = asyncio.create_task(real.serve(sockets=[listening]))
    try:
        async with httpx.AsyncClient(verify=False) as client:
            assert (await client.get(url)).text == "in"
            refused = await client.get(url, headers={"host": "evil.example"})
        assert refused.status_code == 421
        (error,) = json.loads(refused.text)["errors"]
        assert error["extensions"] == {"code": "HOST_NOT_ALLOWED"}
        assert "localhost" in error["message"]

        address = url.replace("http:", "ws:") + "/socket"
        async with connect(address, proxy=None) as client_socket:
            assert await client_socket.recv() == "in"
        # As a browser connects after another site pointed its own name at this machine.
        host, port = listening.getsockname()[:2]
        with pytest.raises(InvalidStatus) as failure:
            await connect(f"ws://evil.example:{port}/socket", proxy=None, host=host, port=port)
        assert failure.value.response.status_code == 421
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200", "a request without a Host does not come from a browser"
        writer.close()
    finally:
        real.should_exit = True
        await task
