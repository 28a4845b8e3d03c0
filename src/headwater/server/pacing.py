"""Bounds the requests of one connection that wait for their turn.

A client may send its next requests before it is answered. uvicorn makes an object of a few kilobytes for each of them,
and with every answer it reads all that has arrived: some 15,000 requests of 18 bytes. Then a client that reads its
answers slower than it asks fills the memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

from headwater.server.request_head import BoundedHead

PIECE = 16 * 1024
"""Bytes that are parsed at a time, and so the bytes of the requests that wait at most, apart from one body."""


class Paced(BoundedHead):
    """The HTTP protocol of one client. While requests wait for their turn, no more bytes are read or parsed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._held = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows the type the same way
        super().connection_made(transport)
        self.flow = _Flow(transport, self._is_behind)

    def data_received(self, data: bytes) -> None:
        if self._held or self.pipeline:
            self._held += data
        elif len(data) <= PIECE:
            super().data_received(data)
        else:
            self._parse_pieces(data)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.flow.read_paused and not self.transport.is_closing():
            self._catch_up()

    def _catch_up(self) -> None:
        if self._held and not self.pipeline:
            held, self._held = self._held, b""
            self._parse_pieces(held)
        self.flow.resume_reading()

    def _is_behind(self) -> bool:
        return bool(self.pipeline or self._held)

    def _parse_pieces(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            if self.pipeline:
                self._held = data[start:]
                return
            if self._socket is not None:
                self._refuse_socket()
                return
            super().data_received(data[start : start + PIECE])


class _Flow(FlowControl):
    """Reads again only when no request waits: the body of the request that is being answered is complete then."""

    def __init__(self, transport: asyncio.Transport, is_behind: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._is_behind = is_behind

    def resume_reading(self) -> None:
        if self.read_paused and not self._is_behind():
            super().resume_reading()
