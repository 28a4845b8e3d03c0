"""A pooler between Headwater and PostgreSQL, as PgBouncer is one: of sessions, or of transactions."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

READY, KEY, QUERY, SYNC = b"Z", b"K", b"Q", b"S"
IDLE = b"I"


@dataclass(eq=False)
class _Client:
    """A client. session: the one that it has now."""

    writer: asyncio.StreamWriter
    session: _Session | None = None


@dataclass(eq=False)
class _Session:
    """A session of PostgreSQL. greeting: what it said until it was ready. unanswered: queries of its client."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    greeting: bytes
    client: _Client | None = None
    unanswered: int = 0


class Pooler:
    """A pooler on a Unix socket in front of PostgreSQL.

    of_transactions: a client has a session for a transaction only, and gets the one that became free last; otherwise it
    keeps its session as long as it is connected.
    """

    def __init__(self, dsn: str, folder: Path, *, of_transactions: bool) -> None:
        where = parse_qs(urlsplit(dsn).query)
        name = f".s.PGSQL.{where['port'][0]}"
        self._server, self._own = str(Path(where["host"][0]) / name), str(folder / name)
        self._of_transactions = of_transactions
        self._free: list[_Session] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.dsn = dsn.replace(quote(where["host"][0], safe=""), quote(str(folder), safe=""))

    async def listen(self) -> None:
        self._listening = await asyncio.start_unix_server(self._serve, self._own)

    async def close(self) -> None:
        self._listening.close()
        for writer in self._writers:
            writer.transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Client(writer)
        self._writers.append(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            hello = await _startup(reader)
            client.session = await self._take(hello, client)
            writer.write(client.session.greeting)
            self._release(client.session)
            while True:
                kind, body = await _message(reader)
                session = await self._session_of(client, hello)
                session.unanswered += kind in (QUERY, SYNC)
                session.writer.write(_packed(kind, body))
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            writer.transport.abort()
            if client.session is not None:
                client.session.writer.transport.abort()

    async def _session_of(self, client: _Client, hello: bytes) -> _Session:
        if client.session is None:
            client.session = await self._take(hello, client)
        return client.session

    async def _take(self, hello: bytes, client: _Client) -> _Session:
        """Return a free session, or a new one."""
        session = self._free.pop() if self._free else await self._open(hello)
        session.client = client
        return session

    async def _open(self, hello: bytes) -> _Session:
        reader, writer = await asyncio.open_unix_connection(self._server)
        self._writers.append(writer)
        writer.write(hello)
        greeting, kind = b"", b""
        while kind != READY:
            kind, body = await _message(reader)
            # A pooler gives its clients keys of its own.
            greeting += _packed(kind, secrets.token_bytes(len(body)) if kind == KEY else body)
        session = _Session(reader, writer, greeting)
        self._tasks.add(asyncio.create_task(self._answer(session)))
        return session

    async def _answer(self, session: _Session) -> None:
        """Pass what a session says to the client that has it."""
        try:
            while True:
                kind, body = await _message(session.reader)
                if session.client is not None:
                    session.client.writer.write(_packed(kind, body))
                session.unanswered -= kind == READY
                if kind == READY and body == IDLE and not session.unanswered:
                    self._release(session)
        except (OSError, asyncio.IncompleteReadError):
            pass  # it has ended

    def _release(self, session: _Session) -> None:
        """Take a session from its client, whose transaction is over."""
        if self._of_transactions and session.client is not None:
            session.client.session = None
            session.client = None
            self._free.append(session)


async def _startup(reader: asyncio.StreamReader) -> bytes:
    length = await reader.readexactly(4)
    return length + await reader.readexactly(int.from_bytes(length) - 4)


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], await reader.readexactly(int.from_bytes(head[1:]) - 4)


def _packed(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4) + body
