"""Limits the size of a request's head, and the time in which it must be complete.

The head is the request line and the headers. The parser buffers all of it until it is complete, before the application
sees anything. uvicorn limits its size only with h11, which takes more than twice the time for each request, and sets no
deadline with either parser.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from itertools import chain
from typing import Any

from headwater.server.upgrade import Upgrading

LARGEST_HEAD = 64 * 1024
"""Bytes of a head at most, and of the extensions and trailers of a chunked body."""

SEPARATORS = len(b": \r\n")

HEAD_SECONDS = 10.0
"""Seconds until a head must be complete, counted from the connection or from the previous response. If that request was
answered before its body had arrived, the rest of the body must arrive within the same time."""


class BoundedHead(Upgrading):
    """The HTTP protocol of one client. It closes a client whose request head is too large or too late.

    awaited -> complete: of a request, or of a socket -> body ended, or answered: the next head is awaited ...
       |           \\-> too large: 431 or 414, closed
       |-> incomplete and too large: the same
       \\-> too late: closed. The head of a socket is complete when the socket is open
    """

    def __init__(self, *arguments: Any, head_seconds: float = HEAD_SECONDS, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.url = b""
        self.headers = []
        self._head_seconds = head_seconds
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
        if self._refused is not None or self.transport.is_closing():
            return
        if self._unparsed > LARGEST_HEAD:
            self._refuse_head()
        elif self._awaited and self._deadline is None and not self._answering:
            self._start_deadline()

    def on_headers_complete(self) -> None:
        self._parsed = True
        if self._head_size() > LARGEST_HEAD:
            self._too_large = True
            raise ValueError("the head is too large")  # stops the parser; uvicorn then calls send_400_response
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            self._cancel_deadline()

    def on_body(self, body: bytes) -> None:
        self._parsed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._parsed = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._answering and not self.transport.is_closing():
            self._start_deadline()  # for the next head, and for the rest of this body

    def send_400_response(self, msg: str) -> None:
        if self._too_large:
            self._refuse_head()
        else:
            super().send_400_response(msg)

    def _head_size(self) -> int:
        return len(self.url) + SEPARATORS * len(self.headers) + sum(map(len, chain.from_iterable(self.headers)))

    def _start_deadline(self) -> None:
        self._cancel_deadline()
        self._deadline = self.loop.call_later(self._head_seconds, self._too_late)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        if self._socket is None or not self._socket.handshake_complete:
            self.transport.close()

    def _refuse_head(self) -> None:
        of_url = 2 * len(self.url) > LARGEST_HEAD
        self.refuse(
            HTTPStatus.REQUEST_URI_TOO_LONG if of_url else HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            "URI_TOO_LONG" if of_url else "HEADERS_TOO_LARGE",
            f"The request line and the headers may have {LARGEST_HEAD} bytes together at most.",
        )
