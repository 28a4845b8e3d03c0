"""Closes the connections of clients that do not read.

uvicorn closes a socket whose client answers no ping with 1011, after which clients do not connect again. It answers
every ping, even if the pongs are never read. It keeps a connection that it has closed until its last byte is read, and
an HTTP response until its client reads it, which may be never.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Sequence
from contextlib import suppress
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import ClientDisconnected, get_client_addr
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import OPEN

from headwater.graphql.frames import CloseCode
from headwater.server.client_faults import ClientFaults

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent
    from websockets.frames import Frame

logger = logging.getLogger(__name__)

_INTEGER = struct.Struct("i")

NO_PONG = "No answer to a ping"

NOT_UTF8 = "A text message of a socket is not UTF-8."

CLOSE_SECONDS = 10.0
"""Seconds in which a client must read the rest after its socket has ended."""

READ_SECONDS = 30.0
"""Seconds in which a client must read a part of what waits for it, after HTTP requests."""


def waiting_bytes(transport: asyncio.Transport) -> int:
    """Return the bytes that a client has not received: those in this process and, on Linux, those in the kernel.

    Only both together show that a slow client reads: the kernel takes no more until a third of its buffer is free.
    """
    queued = 0
    with suppress(OSError, ValueError):  # another system, or closed already
        queued = _INTEGER.unpack(ioctl(transport.get_extra_info("socket"), TIOCOUTQ, bytes(_INTEGER.size)))[0]
    return queued + transport.get_write_buffer_size()


def _is_utf8(frames: Sequence[bytes]) -> bool:
    try:
        b"".join(frames).decode()
    except UnicodeDecodeError:
        return False
    return True


class DrainedSocket(WebSocketsSansIOProtocol):
    """The websocket protocol of one client, which must read.

    open -> closing: the application closes, or the client answers no ping; the close frame goes behind what waits
      closing -> closed: the client has read everything, or `close_seconds` have passed
    """

    def __init__(
        self, *arguments: Any, faults: ClientFaults, close_seconds: float = CLOSE_SECONDS, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._faults = faults
        self._close_seconds = close_seconds
        self._is_full = False
        self._late_pong = b""
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).set_write_buffer_limits()  # as usual, contrary to `DrainedHTTP`
        super().connection_made(transport)

    async def run_asgi(self) -> None:
        await super().run_asgi()
        if not self.disconnected:
            self._deadline = self.loop.call_later(self._close_seconds, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "websocket.close" and self._is_open:
            code, reason = message.get("code"), message.get("reason")
            if code == CloseCode.SLOW_CONSUMER:
                self._report(f"with {code} ({reason})")
            self.writable.set()  # the close frame does not wait until the client has read what is before it
        await super().send(message)

    def keepalive_timeout(self) -> None:
        self.pong_timer = self.pending_ping_payload = None
        if self._is_open:
            closing = self.loop.create_task(self._close_silent())
            self.tasks.add(closing)
            closing.add_done_callback(self.on_task_complete)

    async def _close_silent(self) -> None:
        with suppress(ClientDisconnected, RuntimeError):  # it was closed meanwhile
            await self.send({"type": "websocket.close", "code": CloseCode.SLOW_CONSUMER, "reason": NO_PONG})

    @property
    def _is_open(self) -> bool:
        return self.handshake_complete and not (self.close_sent or self.disconnected or self.transport.is_closing())

    def _report(self, how: str) -> None:
        waiting = waiting_bytes(self.transport)
        logger.warning(
            "closed the socket of %s %s: %d bytes wait to be read", get_client_addr(self.scope), how, waiting
        )

    # -- control frames and fragments, which back pressure and `ws_max_size` do not bound

    def handle_ping(self) -> None:
        pongs = self.conn.data_to_send()  # of all pings that arrived together
        if not pongs or self.close_sent:
            return
        if self._is_full and self.conn.state is OPEN:
            self._late_pong = pongs[-1]  # which answers the earlier pings too (RFC 6455, 5.5.3)
        else:
            self.transport.write(b"".join(pongs))

    def handle_cont(self, event: Frame) -> None:
        if event.data or event.fin:
            super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent and not _is_utf8(self.frames):
            self._faults.log(self.logger, NOT_UTF8)  # uvicorn logs a traceback for each of them
            self.frames = []
            self.conn.send_close(CloseCode.NOT_UTF8)
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()

    def pause_writing(self) -> None:
        self._is_full = True
        super().pause_writing()

    def resume_writing(self) -> None:
        self._is_full = False
        if self._late_pong and self._is_open:
            self.transport.write(self._late_pong)
        self._late_pong = b""
        super().resume_writing()


class DrainedHTTP(HttpToolsProtocol):
    """The HTTP protocol of one client, which must read its responses.

    read -> waiting: the buffer of the kernel is full -> read
      waiting -> waiting: the client has read a part within `read_seconds`
      waiting -> closed: it has not
    """

    def __init__(self, *arguments: Any, read_seconds: float = READ_SECONDS, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._read_seconds = read_seconds
        self._waiting = 0
        self._read_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows the type the same way
        # Back pressure begins with the first byte that the buffer of the kernel does not take.
        transport.set_write_buffer_limits(high=0)
        super().connection_made(transport)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        self._stop_expecting()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_expecting()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        self._stop_expecting()  # the socket's protocol takes over
        super().handle_websocket_upgrade()

    def _expect_reading(self) -> None:
        self._waiting = waiting_bytes(self.transport)
        self._read_deadline = self.loop.call_later(self._read_seconds, self._check)

    def _stop_expecting(self) -> None:
        if self._read_deadline is not None:
            self._read_deadline.cancel()
            self._read_deadline = None

    def _check(self) -> None:
        waiting = waiting_bytes(self.transport)
        if waiting < self._waiting:
            self._expect_reading()
        else:
            logger.warning(
                "closed the connection of %s: %d bytes wait to be read", get_client_addr(self.scope), waiting
            )
            self.transport.abort()
