"""A proxy that simulates faults of the network between Headwater and PostgreSQL."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit


class Proxy:
    """A proxy on a Unix socket in front of PostgreSQL that fails on request.

    silent: it forwards nothing. silent_from: bytes at which it falls silent. ignored: the number of chunks that it has
    not forwarded. greetings: the first chunk of each connection. replaced: what is put in the place
    of some bytes of the replies. swallow_replies: it drops the next reply and closes the connection; then `swallowed`
    is set.
    """

    def __init__(self, dsn: str, folder: Path) -> None:
        where = parse_qs(urlsplit(dsn).query)
        self._name = f".s.PGSQL.{where['port'][0]}"
        self._server = str(Path(where["host"][0]) / self._name)
        self._folder = folder
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.dsn = dsn.replace(quote(where["host"][0], safe=""), quote(str(folder), safe=""))
        self.silent = False
        self.silent_from: bytes | None = None
        self.ignored = 0
        self.greetings: list[bytes] = []
        self.replaced: dict[bytes, bytes] = {}
        self.swallow_replies = False
        self.swallowed = asyncio.Event()

    async def listen(self) -> None:
        """Start, or restart, accepting connections."""
        self._listening = await asyncio.start_unix_server(self._serve, str(self._folder / self._name))

    def lead_to(self, dsn: str) -> None:
        """Lead new connections to another server; the open ones stay where they are."""
        where = parse_qs(urlsplit(dsn).query)
        self._server = str(Path(where["host"][0]) / self._name)

    def cut(self) -> None:
        """Abort the open connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def go_away(self) -> None:
        """Refuse new connections and abort the open ones."""
        self._listening.close()
        (self._folder / self._name).unlink()
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        self._listening.close()
        for writer in self._writers:
            writer.transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self._server)
        except OSError:  # the server is gone
            writer.transport.abort()
            return
        self._writers |= {writer, server_writer}
        for source, target, is_reply in ((reader, server_writer, False), (server_reader, writer, True)):
            task = asyncio.create_task(self._pass_on(source, target, is_reply))
            self._tasks.add(task)

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, is_reply: bool) -> None:
        greeted = is_reply
        try:
            while data := await source.read(65536):
                if not greeted:
                    self.greetings.append(data)
                    greeted = True
                if self.silent_from is not None and self.silent_from in data:
                    self.silent = True
                if self.silent:
                    self.ignored += 1
                    continue
                if is_reply and self.swallow_replies:
                    self.swallow_replies = False
                    self.swallowed.set()
                    break
                if is_reply:
                    for old, new in self.replaced.items():
                        data = data.replace(old, new)
                target.write(data)
                await target.drain()
        except OSError:
            pass
        finally:
            target.transport.abort()
