"""How large the head of a request may be, and how long it may take: until it is complete nobody else looks at it.

The head is the request line and the headers. The parser keeps all of it until it is complete. uvicorn bounds it with
h11 only, which takes more than twice the time for each request, and gives it no deadline with either.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LARGEST_HEAD = 64 * 1024
"""Bytes of a head at most, and of what else is not body: the extensions and trailers of a chunked one."""

SEPARATORS = len(b": \r\n")

HEAD_SECONDS = 10.0
"""From the connection, or from the answer before, until a head must be complete. Within it the rest of a body must have
come, too, whose request was answered without it."""


class BoundedHead(HttpToolsProtocol):
    """A connection whose requests begin in time and within bounds; else it is closed.

    awaited -> complete: it is a request's, or a socket's -> its body has ended, or its answer: the next is awaited ...
       |           \\-> too large: 431 or 414, closed
       |-> too much that is not complete: the same
       \\-> too late: closed
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.url = b""
        self.headers = []
        self._awaited = True
        self._late: asyncio.TimerHandle | None = None
        self._unanswered = 0  # bytes that the parser has taken since it last gave anything back
        self._gave = False
        self._too_large = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._gave = False
        super().data_received(data)
        self._unanswered = 0 if self._gave else self._unanswered + len(data)
        if self.transport.is_closing():
            return
        if self._unanswered > LARGEST_HEAD:
            self._refuse()
        elif self._awaited and self._late is None and not self._answering:
            self._wait()

    def on_headers_complete(self) -> None:
        self._gave, self._awaited = True, False
        self._wait_no_more()
        if len(self.url) + sum(len(name) + len(value) + SEPARATORS for name, value in self.headers) > LARGEST_HEAD:
            self._too_large = True
            raise ValueError("the head is too large")  # stops the parser, which has uvicorn answer: see below
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._gave = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._gave = self._awaited = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._answering and not self.transport.is_closing():
            self._wait()  # for the next one, and for what still comes of this one's body

    def handle_websocket_upgrade(self) -> None:
        self._awaited = False  # what follows is the socket's
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        if self._too_large:
            self._refuse()
        else:
            super().send_400_response(msg)

    @property
    def _answering(self) -> bool:
        # There is none before the first request, whatever uvicorn's annotation says.
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    def _wait(self) -> None:
        self._wait_no_more()
        self._late = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self) -> None:
        if not self._answering:  # else this would stand in the middle of that answer
            self.transport.write(_refusal(of_url=2 * len(self.url) > LARGEST_HEAD))
        self.transport.close()


def _refusal(*, of_url: bool) -> bytes:
    status = HTTPStatus.REQUEST_URI_TOO_LONG if of_url else HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    message = f"The request line and the headers may have {LARGEST_HEAD} bytes together at most."
    code = "URI_TOO_LONG" if of_url else "HEADERS_TOO_LARGE"
    body = msgspec.json.encode({"errors": [{"message": message, "extensions": {"code": code}}]})
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json; charset=utf-8\r\n"
        f"content-length: {len(body)}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
