"""Two versions of an app run at once, and the newer one has more event types: the older one skips no event."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support.executing import accepted
from tests.support.waiting import until

from headwater import (
    App,
    Command,
    Decider,
    Do,
    Done,
    Event,
    Feature,
    Reactor,
    ReadModel,
    Recorded,
    Saga,
    Upcaster,
    View,
)
from headwater.config import Settings
from headwater.projections.generations import Outdated, fingerprint, prepare, prepare_views, rebuild
from headwater.server.node import Node
from headwater.server.worker import register_units

QUICK = replace(Settings(), poll_seconds=0.1, lease_seconds=0.6)


class Note(Command, creates=True):
    note_id: UUID


class Stamp(Command):
    note_id: UUID


class Noted(Event):
    note_id: UUID


class NotedBetter(Event, name="Noted", version=2):
    note_id: UUID
    better: bool


class Stamped(Event):
    note_id: UUID


class NoteView(ReadModel, name="Note", key="note_id"):
    note_id: UUID
    stamps: int


reacted: list[str] = []


def older_app() -> App:
    def decide(command: Note, state: None) -> list[Noted]:
        return [Noted(note_id=command.note_id)]

    def evolve(state: None, event: Noted) -> None: ...

    def fold(row: NoteView | None, event: Recorded[Noted]) -> NoteView:
        return NoteView(note_id=event.data.note_id, stamps=0)

    async def send(event: Recorded[Noted], key: str) -> None:
        reacted.append(event.data.__declared__.name)

    def react(state: None, event: Noted) -> list[Do | Done]:
        return []

    def remember(state: None, event: Noted) -> None: ...

    return App(
        [
            Feature(
                [Decider("note", "note_id", None, decide, evolve)],
                [View(NoteView, fold)],
                sagas=[Saga("Stamping", "note_id", None, react, remember)],
                reactors=[Reactor("mail", send)],
            )
        ]
    )


def newer_app() -> App:
    def decide(command: Note | Stamp, state: None) -> list[NotedBetter | Stamped]:
        if isinstance(command, Stamp):
            return [Stamped(note_id=command.note_id)]
        return [NotedBetter(note_id=command.note_id, better=True)]

    def evolve(state: None, event: NotedBetter | Stamped) -> None: ...

    def fold(row: NoteView | None, event: Recorded[NotedBetter | Stamped]) -> NoteView:
        before = 0 if row is None else row.stamps
        return NoteView(note_id=event.data.note_id, stamps=before + isinstance(event.data, Stamped))

    async def send(event: Recorded[NotedBetter | Stamped], key: str) -> None:
        reacted.append(event.data.__declared__.name)

    def react(state: None, event: NotedBetter | Stamped) -> list[Do | Done]:
        return [Done()] if isinstance(event, Stamped) else []

    def remember(state: None, event: NotedBetter | Stamped) -> None: ...

    return App(
        [
            Feature(
                [Decider("note", "note_id", None, decide, evolve)],
                [View(NoteView, fold)],
                sagas=[Saga("Stamping", "note_id", None, react, remember)],
                reactors=[Reactor("mail", send)],
                upcasters=[Upcaster("Noted", from_version=1, defaults={"better": False})],
            )
        ]
    )


before, today = older_app(), newer_app()


@pytest.fixture(autouse=True)
def _nothing_reacted() -> None:
    reacted.clear()


async def stands_at(connection: asyncpg.Connection, *positions: int) -> bool:
    """True if the checkpoints of the read model, the saga and the reactor are all at one of the positions."""
    query = "select position from headwater.projections where name in ('Note', 'saga Stamping', 'reactor mail')"
    return {row["position"] for row in await connection.fetch(query)} <= set(positions)


async def test_an_old_worker_skips_no_event_of_a_newer_version_and_gives_its_units_up(
    dsn: str, connection: asyncpg.Connection
) -> None:
    note = uuid4()
    async with Node(before, QUICK, dsn, serve=True, work=True) as old:
        await accepted(old, Note(note_id=note))
        await until(lambda: stands_at(connection, 1, 2))  # position 2 is the record in the saga's stream
        async with Node(today, QUICK, dsn, serve=True, work=False) as serving:
            await accepted(serving, Stamp(note_id=note))
            await accepted(serving, Note(note_id=uuid4()))
            await until(lambda: old.leases.held == [])
            assert await stands_at(connection, 1, 2), (
                "the old worker must not advance them, and no new worker is running yet"
            )
            assert old.supervisor.troubles == {}
        async with Node(today, QUICK, dsn, serve=False, work=True):
            statuses = "select string_agg(status, ' ' order by status) from headwater.sagas"
            await until(lambda: _is(connection, statuses, "done running"))
            head = await connection.fetchval("select position from headwater.head")
            await until(lambda: stands_at(connection, head))
    assert await connection.fetchval("select stamps from read.note where note_id = $1", note) == 1
    assert reacted == ["Noted", "Stamped", "Noted"]


async def test_older_code_that_restarts_does_not_take_units_back_from_newer_code(
    dsn: str, connection: asyncpg.Connection
) -> None:
    query = "select name, fingerprint, state from headwater.projections where name ~ 'Note|Stamping|mail' order by name"
    async with Node(today, QUICK, dsn, serve=False, work=True):
        pass
    of_today = await connection.fetch(query)
    for app in (before, today):  # a declaration seen for the first time counts as the newer one
        async with Node(app, QUICK, dsn, serve=False, work=True):
            pass
    after_restart = await connection.fetch(query)
    assert [(name, state) for name, _, state in after_restart] == [(name, state) for name, _, state in of_today]
    assert all(a["fingerprint"] != b["fingerprint"] for a, b in zip(of_today, after_restart, strict=True))
    view = today.domain.view_named("Note")
    with pytest.raises(Outdated, match="NoteView is declared as an earlier generation was"):
        await rebuild(connection, view)
    await prepare_views(dsn, today.domain.views)  # as `headwater migrate` does
    await register_units(connection, today.domain, insist=True)
    assert await connection.fetch(query) == of_today, (
        "`insist` puts the declarations back, and the rows are still there"
    )


async def test_newer_code_retires_a_generation_that_older_code_is_building(
    dsn: str, connection: asyncpg.Connection
) -> None:
    """Newer code restarts the forced rebuild with its own generation."""
    old_view, new_view = before.domain.view_named("Note"), today.domain.view_named("Note")
    await prepare(connection, old_view)
    await rebuild(connection, old_view)
    async with Node(today, QUICK, dsn, serve=True, work=False):
        query = "select generation, fingerprint, state from headwater.projections where name = 'Note' order by 1"
        assert [tuple(row) for row in await connection.fetch(query)] == [
            (1, fingerprint(new_view), "live"),
            (2, fingerprint(old_view), "retired"),
            (3, fingerprint(new_view), "building"),
        ]
    async with Node(today, QUICK, dsn, serve=False, work=True):
        live = "select generation from headwater.projections where name = 'Note' and state = 'live'"
        await until(lambda: _is(connection, live, 3))


async def _is(connection: asyncpg.Connection, query: str, value: object) -> bool:
    return bool(await connection.fetchval(query) == value)


async def test_a_hand_over_to_newer_code_fences_off_the_old_owners_once(
    dsn: str, connection: asyncpg.Connection
) -> None:
    await register_units(connection, before.domain)
    await prepare(connection, before.domain.view_named("Note"))
    query = "select name, fence, owner from headwater.projections where name ~ 'Note|Stamping|mail' order by name"
    await connection.execute("update headwater.projections set owner = $1", uuid4())
    fences = [row["fence"] for row in await connection.fetch(query)]
    async with Node(today, QUICK, dsn, serve=True, work=False):
        now = await connection.fetch(query)
    assert [row["fence"] for row in now] == [fence + 1 for fence in fences]
    assert [row["owner"] for row in now] == [None] * 3
    async with asyncio.timeout(10), Node(today, QUICK, dsn, serve=True, work=False):
        assert await connection.fetch(query) == now, "a second node of the same version changes nothing"
