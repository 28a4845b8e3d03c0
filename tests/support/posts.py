"""A domain for the tests of reactors: posts in boxes, each to somebody.

Run as `posts.py DSN FILE`, it is a worker whose reactor writes each key into the file, and never comes back from the
post that says `stay`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from msgspec.structs import replace

from headwater import App, Command, Decider, Event, Feature, Reactor, ReadModel, Recorded, Retry, View
from headwater.config import Settings
from headwater.domain.serialization import stored_form
from headwater.eventstore.log import Append, append
from headwater.server.node import Node

QUICK = replace(Settings(), poll_seconds=0.05, lease_seconds=1.0)
NOBODY = UUID(int=0)


class Post(Command):
    box_id: UUID
    note: str


class Posted(Event):
    box_id: UUID
    note: str
    to: UUID = NOBODY


class Read(Event):
    """What no reactor here takes."""

    box_id: UUID


def decide(command: Post, state: None) -> list[Posted]:
    return [Posted(box_id=command.box_id, note=command.note)]


def evolve(state: None, event: Posted | Read) -> None:
    return None


class Box(ReadModel, key="box_id"):
    box_id: UUID
    count: int


def fold(row: Box | None, event: Recorded[Posted]) -> Box:
    return Box(box_id=event.data.box_id, count=(row.count if row else 0) + 1)


view = View(Box, fold)


@dataclass
class Outside:
    """The other side: what reached it, and what is wrong with it.

    raises: by note. held: the notes that it does not come back from. cancelled: those that it was called back from.
    """

    got: list[tuple[UUID, str, str]] = field(default_factory=list)
    raises: dict[str, BaseException] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    tried: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    async def react(self, event: Recorded[Posted], key: str) -> None:
        note = event.data.note
        self.tried.append(note)
        if note in self.held:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.append(note)
                raise
        if note in self.raises:
            raise self.raises[note]
        self.got.append((event.data.box_id, note, key))

    @property
    def notes(self) -> list[str]:
        """What reached it, in order."""
        return [note for _, note, _ in self.got]

    def of(self, box: UUID) -> list[str]:
        """What reached it from one box, in order."""
        return [note for each, note, _ in self.got if each == box]

    def reactor(self, **options: Any) -> Reactor:
        """A reactor that calls it."""
        return Reactor("outside", self.react, **options)


def app_of(*reactors: Reactor) -> App:
    return App([Feature([Decider("box", "box_id", None, decide, evolve)], [view], reactors=reactors)])


def posted(box: UUID, note: str, to: UUID = NOBODY) -> Posted:
    return Posted(box_id=box, note=note, to=to)


async def write(connection: asyncpg.Connection, *events: Posted | Read) -> int:
    """Append events; the position of the last."""
    appends = [Append(uuid4(), e.box_id, "box", None, [stored_form(e)], uuid4()) for e in events]
    return (await append(connection, appends))[-1].position


async def react_on_disk(event: Recorded[Posted], key: str) -> None:
    if len(sys.argv) > 2:
        line = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(line, f"{event.data.note} {key}\n".encode())
        os.close(line)
    if event.data.note == "stay":
        await asyncio.Event().wait()


app = app_of(Reactor("outside", react_on_disk, within=timedelta(hours=1), on_failure=Retry(times=0)))


async def work(dsn: str) -> None:
    async with Node(app, QUICK, dsn, serve=False, work=True):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]))
