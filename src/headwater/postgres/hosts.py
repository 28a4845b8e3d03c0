"""Connects to one of several servers that a URL names: `postgresql://a,b/database?target_session_attrs=read-write`.

asyncpg tries them one after another within one timeout. A server that is switched off refuses nothing: it would use up
the whole time, and the others would never be tried. Here each one has a head start on the next, and the first that
answers and has the wanted `target_session_attrs` is taken.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncpg

HEAD_START = 0.3
"""Seconds after which the next server is tried beside those that have not answered."""


async def open_connection(dsn: str, *, timeout: float = 10.0, **options: Any) -> asyncpg.Connection:  # noqa: ASYNC109 - the parameters of asyncpg.connect, in whose place the pool calls it
    """Open a connection as `asyncpg.connect` does. Each server has `timeout` seconds to answer.

    Raises:
        The error of the server that failed last, when none can be used.
    """
    hosts = hosts_of(dsn)
    if len(hosts) < 2:
        return await asyncpg.connect(dsn, timeout=timeout, **options)
    trying: set[asyncio.Task[asyncpg.Connection]] = set()
    try:
        while True:
            if hosts:
                host, port = hosts.pop(0)
                connecting = asyncpg.connect(dsn, host=host, port=port, timeout=timeout, **options)
                trying.add(asyncio.ensure_future(connecting))
            done, _ = await asyncio.wait(
                trying, timeout=HEAD_START if hosts else None, return_when=asyncio.FIRST_COMPLETED
            )
            for each in done:
                trying.remove(each)
                if each.exception() is None or not (hosts or trying):
                    return each.result()
    finally:
        await _give_up(trying)


async def _give_up(trying: set[asyncio.Task[asyncpg.Connection]]) -> None:
    for each in trying:
        each.cancel()
    if trying:
        await asyncio.wait(trying)
    for each in trying:
        if not each.cancelled() and each.exception() is None:
            each.result().terminate()


def hosts_of(dsn: str) -> list[tuple[str, int]]:
    """Return the servers of a URL, with their ports."""
    parts = urlsplit(dsn)
    query = dict(parse_qsl(parts.query))
    hosts = (parts.netloc.rpartition("@")[2] or query.get("host", "")).split(",")
    ports = query.get("port", "5432").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    return [_address(host, int(port)) for host, port in zip(hosts, ports, strict=False)]


def _address(text: str, port: int) -> tuple[str, int]:
    """Return address and port of `host`, `host:5433`, `[::1]:5433` or `/folder`; the given port if it has none."""
    if text.startswith("/"):
        return text, port
    bracketed, closing, rest = text.rpartition("]")
    host, colon, own = (bracketed.removeprefix("["), *rest.partition(":")[1:]) if closing else text.partition(":")
    return unquote(host), int(own) if colon else port
