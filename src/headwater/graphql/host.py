"""Whom a server answers that listens on this machine only: those who call it by this machine's names.

A page of any site can point a name of its own at 127.0.0.1 (DNS rebinding). To the browser it is that site's own server
then, to which it may send what it likes, and no Origin is foreign. The Host header still has the site's name.
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
    "This server answers those who call it localhost or by a loopback address. For other names, listen on another"
    " address (HEADWATER_HOST), or behind a proxy on this machine name their origins (HEADWATER_ALLOWED_ORIGINS)."
)


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, which no other reaches."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class LoopbackOnly:
    """An ASGI application before another: what calls the server by a foreign name is answered 421.

    name: what it was told to listen on, which is as good. origins: those whose hosts are admitted as well, for a proxy
    on this machine that passes the name on. No Host header is no browser: it may.
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
        # Read as a browser does, so that both see the same name: lower case, without the port.
        named = Origin.parse(f"http://{headers[0]}") if len(headers) == 1 else None
        return named is not None and (is_loopback(named.host) or named.host in self._hosts)


def _misdirected() -> Response:
    body = msgspec.json.encode({"errors": [{"message": _SENTENCE, "extensions": {"code": "HOST_NOT_ALLOWED"}}]})
    headers = {"content-type": "application/json; charset=utf-8", "cache-control": "no-store"}
    return Response(body, HTTPStatus.MISDIRECTED_REQUEST, headers)
