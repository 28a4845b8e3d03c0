"""Faults of the network, between Headwater and PostgreSQL."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit


class Proxy:
    """Stands before PostgreSQL, on a Unix socket, and breaks what it is told to break. ignored: pieces that it has
    kept to itself. greetings: the first piece that came of each connection. silent_from: what it falls silent at."""

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
        self.swallow_replies = False
        self.swallowed = asyncio.Event()

    async def listen(self) -> None:
        """Accept connections, from now on or again."""
        self._listening = await asyncio.start_unix_server(self._serve, str(self._folder / self._name))

    async def go_away(self) -> None:
        """Refuse new connections and break those there are."""
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
        server_reader, server_writer = await asyncio.open_unix_connection(self._server)
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
                target.write(data)
                await target.drain()
        except OSError:
            pass
        finally:
            target.transport.abort()
