"""`headwater lost` and `headwater new-epoch`: what the log lost when it went back, and the start of a new epoch."""

from __future__ import annotations

import argparse
from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec

from headwater.cli.connection import ask
from headwater.cli.terminal import aligned
from headwater.config import Settings
from headwater.postgres import queries

_SQL = queries.load(__file__)
_EPOCH_HEADINGS = ("EPOCH", "AFTER POSITION", "BEGAN", "REASON")
_HEADINGS = ("EPOCH", "POSITION", "STREAM", "VERSION", "TYPE", "COMMAND", "KNOWN BY")
_UNKNOWN = "unknown"


class BegunEpoch(msgspec.Struct):
    """An epoch of the log. position: the end of the log when it began."""

    epoch: int
    position: int
    began_at: datetime
    reason: str


class LostPosition(msgspec.Struct):
    """A position that the log lost. epoch: the one that it was in. type: of the event or the command, as far as known.
    known_by: the process that knew it, or whose client did."""

    epoch: int
    position: int
    stream_id: UUID | None
    version: int | None
    type: str | None
    command_id: UUID | None
    known_by: str


class Losses(msgspec.Struct):
    """The whole report."""

    epochs: list[BegunEpoch]
    lost: list[LostPosition]


def run(chosen: argparse.Namespace, settings: Settings) -> None:
    losses = ask(settings, _read)
    if chosen.json:
        print(msgspec.json.encode(losses).decode())
        return
    epochs = [(each.epoch, each.position, f"{each.began_at:%Y-%m-%d %H:%M:%SZ}", each.reason) for each in losses.epochs]
    print(aligned(_EPOCH_HEADINGS, epochs))
    print()
    print(aligned(_HEADINGS, [_row(each) for each in losses.lost]) if losses.lost else "No lost position is known.")


def _row(each: LostPosition) -> tuple[object, ...]:
    known = (each.stream_id, each.version, each.type, each.command_id)
    return (each.epoch, each.position, *(_UNKNOWN if value is None else str(value) for value in known), each.known_by)


async def _read(connection: asyncpg.Connection) -> Losses:
    epochs = [BegunEpoch(**row) for row in await connection.fetch(_SQL["epochs"])]
    return Losses(epochs, [LostPosition(**row) for row in await connection.fetch(_SQL["lost"])])


def run_new_epoch(chosen: argparse.Namespace, settings: Settings) -> None:
    async def begin(connection: asyncpg.Connection) -> int:
        await connection.execute(_SQL["begin"], chosen.reason)
        number: int = await connection.fetchval(_SQL["current"])
        return number

    print(f"Epoch {ask(settings, begin)} of the log has begun. Every process drops what it knew, and reads again.")
