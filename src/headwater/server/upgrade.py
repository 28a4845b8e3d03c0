"""Decides about requests that ask for another protocol: a websocket can be had, all else is answered as plain HTTP.

The parser (llhttp) ends such a request at its head, and takes what follows for the other protocol. uvicorn then answers
without the body, drops what it has received of it, and reads what arrives later as the next request: a caller's data
becomes a request. `curl --http2` and Java's HttpClient ask for HTTP/2 with the first request of a connection.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from headwater.server.client_faults import ClientFaults
from headwater.server.refusal import Refusing, error_of

INVALID = "Invalid HTTP request received."

NOT_ALONE = "A request for a WebSocket has no body, and nothing may follow it before it is answered."
MALFORMED = "The request for a WebSocket is malformed."


class Upgrading(Refusing):
    """The HTTP protocol of one client. A head that asks for another protocol is set aside, then decided about.

    set aside -> for a websocket, with nothing after the head: the protocol of sockets goes on
       |      \\-> for a websocket, with a body or more bytes: refused, closed
       |-> CONNECT: refused, closed
       \\-> otherwise: parsed again without its `Upgrade`, which a server may ignore (RFC 9110, 7.8), and with its body
    """

    def __init__(self, *arguments: Any, faults: ClientFaults, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._faults = faults
        self._socket: WebSocketsSansIOProtocol | None = None

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        rest: bytes | memoryview = data
        try:
            while rest and self._refused is None:
                rest = self._parse(rest)
        except httptools.HttpParserError:
            self._invalid()

    def handle_websocket_upgrade(self) -> None:
        # Frames that came before the upgrade is answered would be answered before it.
        self.transport.pause_reading()
        super().handle_websocket_upgrade()
        socket = self.transport.get_protocol()
        assert isinstance(socket, WebSocketsSansIOProtocol), "as server_of configures it"
        self._socket = socket
        socket.read_paused = True  # it reads again as soon as the application accepts
        if not socket.handshake_initiated:
            # `websockets` cannot read the head. uvicorn would neither answer nor close.
            reason = b"".join(socket.conn.data_to_send())
            self._end(reason or error_of(HTTPStatus.BAD_REQUEST, "BAD_UPGRADE", MALFORMED))

    def _should_upgrade(self) -> bool:
        """Return True: uvicorn begins no request for a head that asks for another protocol."""
        return True

    def _parse(self, data: bytes | memoryview) -> bytes | memoryview:
        """Parse until a head asks for another protocol, and decide about that. Return the rest of the bytes."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._decide(memoryview(data)[upgrade.args[0] :])
        return b""

    def _decide(self, rest: memoryview) -> bytes | memoryview:
        if self._is_for_socket():
            self._open_socket(rest)
            return b""
        if self.scope["method"] == "CONNECT":
            self._invalid()  # what follows is for another server
            return b""
        self.parser = httptools.HttpRequestParser(self)  # the other one may have reached the end of the connection
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does: it is then ignored
        self.parser.feed_data(self._plain_head())
        return rest

    def _is_for_socket(self) -> bool:
        """True if the request is for a websocket and nothing else. Behind unanswered requests it must wait as HTTP."""
        asked = b",".join(value for name, value in self.scope["headers"] if name == b"upgrade")
        return asked.strip().lower() == b"websocket" and self.scope["http_version"] == "1.1" and not self._answering

    def _open_socket(self, rest: memoryview) -> None:
        if rest or any(_is_of_body(name, value) for name, value in self.scope["headers"]):
            self._refuse_socket()
        else:
            self.handle_websocket_upgrade()

    def _refuse_socket(self) -> None:
        self.refuse(HTTPStatus.BAD_REQUEST, "BAD_UPGRADE", NOT_ALONE)

    def _plain_head(self) -> bytes:
        """Return the head that was set aside, without its `Upgrade`."""
        start = f"{self.scope['method']} ".encode() + self.url + f" HTTP/{self.scope['http_version']}\r\n".encode()
        kept = (name + b": " + value + b"\r\n" for name, value in self.scope["headers"] if name != b"upgrade")
        return start + b"".join(kept) + b"\r\n"

    def _invalid(self) -> None:
        self._faults.log(self.logger, INVALID)
        self.send_400_response(INVALID)


def _is_of_body(name: bytes, value: bytes) -> bool:
    return name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0") != b"")
