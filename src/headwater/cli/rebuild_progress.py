"""Follows a rebuild that any worker runs: a line of progress, and the result."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from headwater.errors import HeadwaterError
from headwater.postgres import queries
from headwater.postgres.database import Connection

_SQL = queries.load(__file__)

LOOK_SECONDS = 0.2
WIDTH = 30


class RebuildFailed(HeadwaterError):
    """The generation was not built, and the live one stays. The message says why and what to do."""


@dataclass(frozen=True)
class Built:
    """The progress of a generation.

    state: building, live or retired. position: up to which events are folded. head: the end of the log.
    failure: why the build has stopped. hindrance: what the swap waits for. workers: how many running workers have the
    code that can build it.
    """

    state: str
    position: int
    head: int
    failure: str | None
    hindrance: str | None
    workers: int


async def look(connection: Connection, name: str, generation: int) -> Built:
    """Return the progress of a generation.

    Raises:
        RebuildFailed: there is no such generation.
    """
    row = await connection.fetchrow(_SQL["built"], name, generation)
    if row is None:
        raise RebuildFailed(f"There is no generation {generation} of {name}.")
    return Built(**row)


async def follow(
    connection: Connection,
    name: str,
    generation: int,
    *,
    show: Callable[[str], None],
    alone: Callable[[], Awaitable[None]],
) -> int:
    """Wait until the generation is live, and return its position.

    show: is called with each line of progress. alone: is awaited when no running worker can build the generation.

    A recorded hindrance of the swap is cleared first, since it may no longer exist; the next failed swap records it
    again.

    Raises:
        RebuildFailed: the build has failed, its swap is hindered, or the generation was retired before it was live.
    """
    loop = asyncio.get_running_loop()
    await connection.execute(_SQL["forget_hindrance"], name, generation)
    built = await look(connection, name, generation)
    started, first = loop.time(), built.position
    while built.state == "building":
        if built.failure is not None:
            raise RebuildFailed(f"{name} keeps its present rows: {built.failure}")
        if built.hindrance is not None:
            raise RebuildFailed(
                f"{name} keeps its present rows for now: {built.hindrance}. The new rows are built, and a worker swaps "
                "them in as soon as that is resolved."
            )
        if not built.workers:
            await alone()
        show(line(name, built.position, built.head, built.position - first, loop.time() - started))
        await asyncio.sleep(LOOK_SECONDS)
        built = await look(connection, name, generation)
    if built.state == "retired" and not await connection.fetchval(_SQL["was_live"], name, generation):
        raise RebuildFailed(
            f"Generation {generation} of {name} was retired before it was live: another version of the code "
            "builds its own."
        )
    return built.position


async def follow_anew(
    connection: Connection,
    name: str,
    head: int,
    *,
    show: Callable[[str], None],
    alone: Callable[[], Awaitable[None]],
) -> int:
    """Wait until a unit that begins again has reached a position, and return where it is. show, alone: as in `follow`.

    Raises:
        RebuildFailed: the unit halts before an event.
    """
    started = asyncio.get_running_loop().time()
    while True:
        now = await connection.fetchrow(_SQL["started_over"], name, head)
        assert now is not None  # it is registered
        if now["done"]:
            position: int = now["position"]
            return position
        if now["failure"] is not None:
            raise RebuildFailed(f"{name} halts: {now['failure']}. It goes on as soon as the code is mended.")
        if not now["workers"]:
            await alone()
        seconds = asyncio.get_running_loop().time() - started
        show(line(name, now["position"], head, now["position"], seconds))
        await asyncio.sleep(LOOK_SECONDS)


def line(name: str, done: int, total: int, folded: int, seconds: float) -> str:
    """Return `Account  [######            ]   34%  1,700,000 of 5,000,000 events  71,000/s  0:46 left`."""
    share = min(1.0, done / total) if total else 1.0
    bar = "#" * int(share * WIDTH)
    text = f"{name}  [{bar:<{WIDTH}}]  {share:4.0%}  {done:,} of {total:,} events"
    if done >= total:
        return f"{text}  indexes, sample, swap"
    if folded <= 0 or seconds <= 0:
        return text
    rate = folded / seconds
    minutes, rest = divmod(round((total - done) / rate), 60)
    return f"{text}  {rate:,.0f}/s  {minutes}:{rest:02} left"
