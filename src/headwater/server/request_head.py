"""Limits the size of a request's head, and the time in which it must be complete.

The head is the request line and the headers. The parser buffers all of it until it is complete, before the application
sees anything. uvicorn limits its size only with h11, which takes more than twice the time for each request, and sets no
deadline with either parser.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LARGEST_HEAD = 64 * 1024
"""Bytes of a head at most, and of the extensions and trailers of a chunked body."""

SEPARATORS = len(b": \r\n")

HEAD_SECONDS = 10.0
"""Seconds until a head must be complete, counted from the connection or from the previous response. If that request was
answered before its body had arrived, the rest of the body must arrive within the same time."""


class BoundedHead(HttpToolsProtocol):
    """The HTTP protocol of one client. It closes a client whose request head is too large or too late.

    awaited -> complete: of a request, or of a socket -> body ended, or answered: the next head is awaited ...
       |           \\-> too large: 431 or 414, closed
       |-> incomplete and too large: the same
       \\-> too late: closed
    """

    def __init__(self, *arguments: Any, head_seconds: float = HEAD_SECONDS, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.url = b""
        self.headers = []
        self._head_seconds = head_seconds
        self._awaited = True
        self._deadline: asyncio.TimerHandle | None = None
        self._unparsed = 0  # bytes given to the parser since its last callback
        self._parsed = False
        self._too_large = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows the type the same way
        super().connection_made(transport)
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._parsed = False
        super().data_received(data)
        self._unparsed = 0 if self._parsed else self._unparsed + len(data)
        if self.transport.is_closing():
            return
        if self._unparsed > LARGEST_HEAD:
            self._refuse()
        elif self._awaited and self._deadline is None and not self._answering:
            self._start_deadline()

    def on_headers_complete(self) -> None:
        self._parsed, self._awaited = True, False
        self._cancel_deadline()
        if len(self.url) + sum(len(name) + len(value) + SEPARATORS for name, value in self.headers) > LARGEST_HEAD:
            self._too_large = True
            raise ValueError("the head is too large")  # stops the parser; uvicorn then calls send_400_response
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._parsed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._parsed = self._awaited = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._answering and not self.transport.is_closing():
            self._start_deadline()  # for the next head, and for the rest of this body

    def handle_websocket_upgrade(self) -> None:
        self._awaited = False  # all that follows belongs to the socket
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        if self._too_large:
            self._refuse()
        else:
            super().send_400_response(msg)

    @property
    def _answering(self) -> bool:
        # `cycle` is None before the first request, contrary to uvicorn's annotation.
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    def _start_deadline(self) -> None:
        self._cancel_deadline()
        self._deadline = self.loop.call_later(self._head_seconds, self.transport.close)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self) -> None:
        if not self._answering:  # otherwise it would be written into the middle of a response
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
