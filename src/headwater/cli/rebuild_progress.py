"""Following a rebuild from outside, whoever does it: a line of progress, and what came of it."""

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
    """The generation is not built; what was live stays so. The sentence says why, and what to do."""


@dataclass(frozen=True)
class Built:
    """A generation on its way. failure: why it is not built. hindrance: what its swap waits for. workers: those alive
    whose code can build it."""

    state: str
    position: int
    head: int
    failure: str | None
    hindrance: str | None
    workers: int


async def look(connection: Connection, name: str, generation: int) -> Built:
    """How far a generation has come."""
    row = await connection.fetchrow(_SQL["built"], name, generation)
    if row is None:
        raise RebuildFailed(f"There is no generation {generation} of {name}.")
    return Built(*row)


async def follow(
    connection: Connection,
    name: str,
    generation: int,
    *,
    show: Callable[[str], None],
    alone: Callable[[], Awaitable[None]],
) -> int:
    """Until the generation is live; its position. show: takes each line of progress. alone: awaited when no worker is
    there to build it.

    What has held it up before is forgotten: it may be out of the way, and whoever builds says so again when it is not.

    Raises:
        RebuildFailed: it stands still, is held up, or was given up.
    """
    loop = asyncio.get_running_loop()
    await connection.execute(_SQL["forget_hindrance"], name, generation)
    built = await look(connection, name, generation)
    started, first = loop.time(), built.position
    while built.state == "building":
        if built.failure is not None:
            raise RebuildFailed(f"{name} stays as it is: {built.failure}")
        if built.hindrance is not None:
            raise RebuildFailed(
                f"{name} stays as it is: {built.hindrance}. Its new rows are built, and take their place by themselves "
                "once that is out of the way."
            )
        if not built.workers:
            await alone()
        show(line(name, built.position, built.head, built.position - first, loop.time() - started))
        await asyncio.sleep(LOOK_SECONDS)
        built = await look(connection, name, generation)
    if built.state == "retired" and not await connection.fetchval(_SQL["was_live"], name, generation):
        raise RebuildFailed(f"Generation {generation} of {name} was given up: another version of the code goes on.")
    return built.position


def line(name: str, done: int, total: int, folded: int, seconds: float) -> str:
    """`Account  [######            ]   34%  1,700,000 of 5,000,000 events  71,000/s  0:46 left`."""
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
