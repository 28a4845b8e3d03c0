"""The Origin header: pages of other sites cannot open a socket."""

import pytest
from tests.support.sockets import PROTOCOL, Client, Server, greeted, socket

# -- origins


@pytest.mark.parametrize(
    ("origin", "options"),
    [
        (None, {}),
        ("http://here.test", {}),
        ("https://here.test", {}),
        ("HTTP://HERE.test", {}),
        ("http://here.test:80", {}),
        ("https://here.test:443", {}),
        ("http://here.test:8000", {"host": "here.test:8000"}),
        ("http://[::1]:8000", {"host": "[::1]:8000"}),
        ("https://here.test", {"scheme": "wss"}),
    ],
)
async def test_a_page_of_the_same_host_may_open_a_socket(origin: str | None, options: dict[str, str]) -> None:
    async with greeted(Server(), origin=origin, **options):
        pass


@pytest.mark.parametrize(
    ("origin", "options"),
    [
        ("http://there.test", {}),
        ("null", {}),
        ("http://here.test:8000", {}),
        ("http://here.test", {"host": "here.test:8000"}),
        ("http://here.test.evil.test", {}),
        ("http://evil.test/here.test", {}),
        ("http://here.test@evil.test", {}),
        ("http://here.test", {"host": ""}),
        ("http://here.test", {"scheme": "wss"}),
        ("chrome-extension://here.test", {}),
        ("http://here.test:port", {}),
        ("http://", {}),
    ],
)
async def test_a_page_of_another_host_is_refused_before_the_upgrade(origin: str, options: dict[str, str]) -> None:
    async with socket(Server(), origin=origin, **options) as client:
        await client.close_code()
        assert client.accepted is None


@pytest.mark.parametrize(
    ("origin", "admitted"),
    [
        ("https://app.test", True),
        ("HTTPS://APP.TEST:443", True),
        ("http://dev.test:3000", True),
        (None, True),
        ("http://app.test", False),
        ("http://dev.test", False),
        ("http://here.test", False),
        ("null", False),
    ],
)
async def test_allowed_origins_are_compared_in_normal_form(origin: str | None, admitted: bool) -> None:
    server = Server(allowed_origins=frozenset({"https://App.Test", "http://dev.test:3000"}))
    async with socket(server, origin=origin) as client:
        if admitted:
            await client.greet()
        else:
            await client.close_code()
        assert (client.accepted is not None) is admitted


@pytest.mark.parametrize("wrong", ["null", "app.test", "https://app.test/path", "*"])
def test_an_allowed_origin_that_is_no_origin_is_a_configuration_error(wrong: str) -> None:
    with pytest.raises(ValueError, match="is not an origin"):
        Server(allowed_origins={wrong})


async def test_a_handshake_with_two_origin_headers_is_refused() -> None:
    server = Server()
    client = Client(PROTOCOL, origin="http://here.test")
    client.scope["headers"] = [*client.scope["headers"], (b"origin", b"http://there.test")]
    client.connect()
    client.leave()
    await server.endpoint(client.scope, client.receive, client.send)
    assert client.accepted is None
