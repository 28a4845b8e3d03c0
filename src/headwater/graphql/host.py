"""Protects a server on a loopback address from DNS rebinding.

Any site can point a name of its own at 127.0.0.1. The browser then takes the server for the site's own, sends any
request to it, and no Origin is foreign. But the Host header has the site's name, so foreign names are refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from http import HTTPStatus

import msgspec
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from headwater.graphql.origin import Origin

_SENTENCE = (
    "This server accepts requests to localhost and to loopback addresses only. To use another name, listen on another"
    " address (HEADWATER_HOST) or, behind a proxy on this machine, list the origin in HEADWATER_ALLOWED_ORIGINS."
)


def is_loopback(host: str) -> bool:
    """True if the name or address is localhost or a loopback address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class LoopbackOnly:
    """ASGI middleware that answers 421 to requests with a foreign name in the Host header.

    name: the host that the server listens on, which is admitted. origins: their hosts are admitted too, for a proxy on
    this machine that passes the name on. A request without a Host header does not come from a browser and is admitted.
    """

    def __init__(self, app: ASGIApp, name: str, origins: Iterable[str] = ()) -> None:
        self._app = app
        self._hosts = {origin.host for each in origins if (origin := Origin.parse(each)) is not None} | {name.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._admits(HTTPConnection(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
            await _misdirected()(scope, receive, send)
        else:
            await send({"type": "websocket.close"})  # before the upgrade: the server answers 403

    def _admits(self, connection: HTTPConnection) -> bool:
        headers = connection.headers.getlist("host")
        if not headers:
            return True
        # Parsed as a browser does, so that both see the same name: lower case, without the port.
        named = Origin.parse(f"http://{headers[0]}") if len(headers) == 1 else None
        return named is not None and (is_loopback(named.host) or named.host in self._hosts)


def _misdirected() -> Response:
    body = msgspec.json.encode({"errors": [{"message": _SENTENCE, "extensions": {"code": "HOST_NOT_ALLOWED"}}]})
    headers = {"content-type": "application/json; charset=utf-8", "cache-control": "no-store"}
    return Response(body, HTTPStatus.MISDIRECTED_REQUEST, headers)
