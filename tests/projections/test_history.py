"""Rows as of the past that gather events of several streams: their View records which events (`history=True`)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest
from tests.support.positions import text
from tests.support.waiting import until

from headwater import App, Command, Decider, Event, Feature, Link, ReadModel, Recorded, View, replace
from headwater.config import Settings
from headwater.domain.serialization import stored_form
from headwater.errors import AsOfUnsupported, CodeFailed, DefinitionError, ProjectionBehind, ReadModelRebuilding
from headwater.eventstore.log import Append, Log, append
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope
from headwater.postgres.database import Database
from headwater.projections.generations import prepare, rebuild, renew
from headwater.projections.history import History
from headwater.projections.rebuild import BuildSettings, Rebuild
from headwater.projections.retire import RetiredTables
from headwater.projections.verify import Verifier
from headwater.server.node import Node

QUICK = replace(Settings(), poll_seconds=0.1, lease_seconds=1.0, projection_batch=7, projection_cache=2)


# Notes that are pinned to boards, and taken off ----------------------------------------------------------------------


class Pin(Command):
    note_id: UUID


class Pinned(Event):
    note_id: UUID
    board_id: UUID
    text: str = ""


class TakenOff(Event):
    note_id: UUID
    was_on: UUID


PinEvent: TypeAlias = Pinned | TakenOff


class Board(ReadModel, key="board_id"):
    """The number of notes on a board, while there are any."""

    board_id: UUID
    notes: int
    last: str


class Note(ReadModel, key="note_id"):
    note_id: UUID
    board_id: UUID

    board = Link(Board, by="board_id")


def decide(command: Pin, state: None) -> list[PinEvent]:
    raise AssertionError("the log is written by the tests")


def evolve(state: None, event: PinEvent) -> None:
    return None


def fold_board(row: Board | None, event: Recorded[PinEvent]) -> Board | None:
    if isinstance(event.data, TakenOff):
        return row and (replace(row, notes=row.notes - 1) if row.notes > 1 else None)
    if event.data.text == "poison":
        raise ZeroDivisionError("a bug in the fold")
    return Board(board_id=event.data.board_id, notes=(row.notes if row else 0) + 1, last=event.data.text)


def fold_note(row: Note | None, event: Recorded[Pinned]) -> Note:
    return Note(note_id=event.data.note_id, board_id=event.data.board_id)


def board_of(event: PinEvent) -> UUID:
    return event.board_id if isinstance(event, Pinned) else event.was_on


def route(event: Recorded[PinEvent]) -> UUID:
    return board_of(event.data)


class Other(ReadModel, name="Board", key="note_id"):
    """Another version of Board: a row for each note."""

    note_id: UUID


def fold_other(row: Other | None, event: Recorded[Pinned]) -> Other:
    return Other(note_id=event.data.note_id)


class Indexed(ReadModel, name="Board", key="board_id", indexes=["last"]):
    board_id: UUID
    last: str


def fold_indexed(row: Indexed | None, event: Recorded[Pinned]) -> Indexed:
    return Indexed(board_id=event.data.board_id, last=event.data.text)


notes = Decider(category="note", key="note_id", initial=None, decide=decide, evolve=evolve)
board_view = View(Board, fold_board, route, history=True)
without = View(Board, fold_board, route)
indexed_view = View(Indexed, fold_indexed, history=True)
app, app_without = (App([Feature([notes], [view, View(Note, fold_note)])]) for view in (board_view, without))

NOTES, BOARDS = [uuid4() for _ in range(5)], [uuid4() for _ in range(4)]


# What the tests say --------------------------------------------------------------------------------------------------


async def write(connection: asyncpg.Connection, *events: Any) -> int:
    """Append events. Returns the position of the last."""
    appends = [
        Append(
            uuid4(),
            each.note_id,
            "note",
            None,
            [stored_form(each)],
            uuid4(),
        )
        for each in events
    ]
    return (await append(connection, appends))[-1].position


def anything(count: int, seed: int = 1) -> list[PinEvent]:
    chance = random.Random(seed)
    return [
        Pinned(note_id=chance.choice(NOTES), board_id=chance.choice(BOARDS), text=f"note {n}")
        if chance.random() < 0.6
        else TakenOff(note_id=chance.choice(NOTES), was_on=chance.choice(BOARDS))
        for n in range(count)
    ]


def pasts(events: Sequence[PinEvent]) -> list[dict[UUID, dict[str, Any]]]:
    """Return all boards after each position from 0 on, by a second fold."""
    boards: dict[UUID, dict[str, Any]] = {}
    past = [boards]
    for position, data in enumerate(events, 1):
        key = board_of(data)
        notes = boards.get(key, {"notes": 0})["notes"]
        boards = {**boards}
        if isinstance(data, Pinned):
            boards[key] = {"board_id": key, "notes": notes + 1, "last": data.text, "position": position}
        elif notes > 1:
            boards[key] = boards[key] | {"notes": notes - 1, "position": position}
        else:
            boards.pop(key, None)
        past.append(boards)
    return past


async def require_past(of: History, events: Sequence[PinEvent]) -> None:
    for position, boards in enumerate(pasts(events)):
        for key in (*BOARDS, uuid4()):
            assert await of.row(key, position) == boards.get(key), position


async def require_routed(connection: asyncpg.Connection, table: str, events: Sequence[PinEvent]) -> None:
    """Require that every event is recorded once, under its key."""
    kept = await connection.fetch(f"select position, board_id from routed.{table} order by position")
    assert [tuple(row) for row in kept] == list(enumerate(map(board_of, events), 1))


async def indexes(connection: asyncpg.Connection, table: str) -> list[str]:
    query = "select indexdef from pg_indexes where schemaname = 'routed' and tablename = $1"
    return [row["indexdef"] for row in await connection.fetch(query, table)]


def history_of(node: Node, **bounds: int) -> History:
    """Return the history of the node's boards. bounds: `page` and `behind`."""
    domain = node.app.domain
    return History(domain, domain.view_named("Board"), node.log, node.database.pool, **bounds)


async def caught_up(node: Node) -> None:
    head = await node.log.head()
    await until(lambda: all(each.progress.position >= head for each in node.worker.projectors.values()))


# As of a position ----------------------------------------------------------------------------------------------------


async def test_rows_of_several_streams_can_be_read_as_of_each_position(
    dsn: str, connection: asyncpg.Connection
) -> None:
    events = anything(60)
    async with Node(app, QUICK, dsn, serve=True, work=True) as node:
        for some in range(0, len(events), 9):
            await write(connection, *events[some : some + 9])
            await caught_up(node)
        await require_routed(connection, "board_1", events)
        await require_past(history_of(node), events)
    await write(connection, *(more := anything(10, seed=2)))
    async with Node(app, QUICK, dsn, serve=True, work=False) as node:  # no worker runs: new events are in the log only
        await require_past(history_of(node), events + more)


async def test_a_long_history_is_read_in_pages(dsn: str, connection: asyncpg.Connection) -> None:
    events = anything(40)
    async with Node(app, QUICK, dsn, serve=True, work=True) as node:
        await write(connection, *events)
        await caught_up(node)
        await require_past(history_of(node, page=3), events)
    async with Node(app, QUICK, dsn, serve=True, work=False) as node:
        await write(connection, *(more := anything(20, seed=2)))
        await require_past(history_of(node, page=3), events + more)


async def test_a_parked_row_has_a_past_up_to_its_failure(dsn: str, connection: asyncpg.Connection) -> None:
    """Events that could not be folded are recorded, too. The row has no state after the failed one."""
    board, other = BOARDS[:2]
    pins = [Pinned(note_id=NOTES[0], board_id=each, text=text) for text in "ab" for each in (board, other)]
    poison = Pinned(note_id=NOTES[0], board_id=board, text="poison")
    async with Node(app, QUICK, dsn, serve=True, work=True) as node:
        await write(connection, *pins, poison, *pins)
        await caught_up(node)
        assert await connection.fetchval("select count(*) from headwater.dead_letters") == 3
        await require_routed(connection, "board_1", [*pins, poison, *pins])
        assert await history_of(node).row(board, 4) == {"board_id": board, "notes": 2, "last": "b", "position": 3}
        with pytest.raises(ZeroDivisionError, match="a bug in the fold"):
            await history_of(node).row(board, 9)
        assert await history_of(node).row(other, 9) == {"board_id": other, "notes": 4, "last": "b", "position": 9}


async def test_graphql_reads_a_row_and_its_links_as_of_a_position(dsn: str, connection: asyncpg.Connection) -> None:
    async with Node(app, QUICK, dsn, serve=True, work=True) as node:
        await write(connection, *(Pinned(note_id=note, board_id=BOARDS[0], text="x") for note in NOTES))
        await caught_up(node)
        query = """query($note: UUID!, $board: UUID!) {
            board(boardId: $board, asOf: { position: "3" }) { notes position }
            note(noteId: $note, asOf: { position: "4" }) { board { notes } }
        }"""
        request = GraphQLRequest(query, variables={"note": str(NOTES[0]), "board": str(BOARDS[0])})
        result = await Engine(app.schema).execute(request, Scope(node.serving))
        assert not result.errors
        assert result.data == {"board": {"notes": 3, "position": text(node, 3)}, "note": {"board": {"notes": 4}}}


# The records --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [BuildSettings(), BuildSettings(events=5), BuildSettings(events=5, cache=1), BuildSettings(rows=1)],
    ids=["default", "events", "cache", "rows"],
)
async def test_a_rebuild_records_the_same_history(
    dsn: str, connection: asyncpg.Connection, settings: BuildSettings
) -> None:
    events = anything(50)
    await prepare(connection, board_view)
    await write(connection, *events)
    async with Database(dsn, pool_size=2) as database:
        log = Log(database.pool, app.domain.codec, page=3)  # rows are written only between pages
        standing = await rebuild(connection, board_view)
        await Rebuild(database, log, board_view, settings=settings).build(standing)
        await require_routed(connection, standing.table, events)
        await require_past(History(app.domain, board_view, log, database.pool), events)
        first, built = [await indexes(connection, f"board_{generation}") for generation in (1, 2)]
        assert built == [each.replace("board_1", "board_2") for each in first] != []
        statistics = "select exists (select from pg_stats where schemaname = 'routed' and tablename = 'board_2')"
        assert await connection.fetchval(statistics)


async def test_a_rebuild_that_starts_again_records_no_event_twice(dsn: str, connection: asyncpg.Connection) -> None:
    """A value that is too large for an index makes it start again, and its row is parked."""
    chance = random.Random(1)
    large = "".join(chr(chance.randrange(0x4E00, 0x9000)) for _ in range(8000))
    events = [Pinned(note_id=NOTES[0], board_id=board, text=text) for text in ("a", "b", large) for board in BOARDS]
    await prepare(connection, indexed_view)
    await write(connection, *events)
    async with Database(dsn, pool_size=2) as database:
        log = Log(database.pool, app.domain.codec)
        standing = await rebuild(connection, indexed_view)
        await Rebuild(database, log, indexed_view, settings=BuildSettings(events=5)).build(standing)
        await require_routed(connection, standing.table, events)
    assert await connection.fetchval("select count(*) from headwater.dead_letters") == len(BOARDS)


async def test_history_can_be_declared_later(dsn: str, connection: asyncpg.Connection) -> None:
    """It is a changed declaration. Reads of the past are refused until the next generation is live."""
    events = anything(30)
    await prepare(connection, without)
    await write(connection, *events)
    async with Node(app_without, QUICK, dsn, serve=True, work=True) as node:
        await caught_up(node)
        with pytest.raises(AsOfUnsupported, match="Board cannot be read as of the past"):
            await history_of(node).row(BOARDS[0], 1)
    await renew(connection, board_view)
    async with Node(app, QUICK, dsn, serve=True, work=False) as node:
        with pytest.raises(ReadModelRebuilding, match="ask again when that is live"):
            await history_of(node).row(BOARDS[0], 1)
        async with Node(app, QUICK, dsn, serve=False, work=True):
            await until(lambda: connection.fetchval("select to_regclass('routed.board_2') is not null"))
            live = "select generation = 2 from headwater.projections where name = 'Board' and state = 'live'"
            await until(lambda: connection.fetchval(live))
        await require_past(history_of(node), events)


async def test_the_history_of_another_declaration_is_not_used(dsn: str, connection: asyncpg.Connection) -> None:
    await prepare(connection, View(Other, fold_other, history=True))
    await write(connection, *anything(5))
    async with Node(app, QUICK, dsn, serve=True, work=False) as node:
        with pytest.raises(ReadModelRebuilding):
            await history_of(node).row(BOARDS[0], 5)


async def test_a_read_far_beyond_the_checkpoint_is_refused(dsn: str, connection: asyncpg.Connection) -> None:
    events = anything(11)
    async with Node(app, QUICK, dsn, serve=True, work=False) as node:
        await write(connection, *events)
        await require_past(history_of(node, behind=10), events[:10])
        with pytest.raises(ProjectionBehind, match="Board has reached position 0"):
            await history_of(node, behind=10).row(BOARDS[0], 11)


async def test_a_role_needs_no_right_to_create_schemas_that_exist(connection: asyncpg.Connection) -> None:
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(
            "create schema routed; create role plain; grant usage, create on schema read, routed to plain;"
            "grant usage on schema headwater to plain; grant select, insert on headwater.projections to plain;"
            "set local role plain"
        )
        await prepare(connection, board_view)
        assert await connection.fetchval("select count(*) from pg_tables where tableowner = 'plain'") == 2
    finally:
        await transaction.rollback()  # a role belongs to all databases of the server


async def test_a_history_dropped_during_a_read_is_reported_as_rebuilding(
    dsn: str, connection: asyncpg.Connection
) -> None:
    async with Node(app, QUICK, dsn, serve=True, work=False) as node:
        await write(connection, Pinned(note_id=NOTES[0], board_id=BOARDS[0]))
        await connection.execute("drop table routed.board_1")
        with pytest.raises(ReadModelRebuilding):
            await history_of(node).row(BOARDS[0], 1)


async def test_the_history_of_a_generation_is_dropped_with_its_rows(dsn: str, connection: asyncpg.Connection) -> None:
    await prepare(connection, board_view)
    await write(connection, *anything(5))
    async with Database(dsn, pool_size=2) as database:
        log = Log(database.pool, app.domain.codec)
        await Rebuild(database, log, board_view).build(await rebuild(connection, board_view))
        assert await RetiredTables(database, seconds=0.0).drop() == ["board_1"]
    tables = await connection.fetch("select tablename from pg_tables where schemaname = 'routed'")
    assert [name for (name,) in tables] == ["board_2"]


@pytest.mark.parametrize(
    "falsified",
    [
        "delete from routed.board_1 where position = 7",
        "update routed.board_1 set position = 1000 where position = 7",
        "insert into routed.board_1 values (gen_random_uuid(), 7)",
    ],
)
@pytest.mark.parametrize("sample", [None, 1000])
async def test_verify_finds_a_changed_history(
    dsn: str, connection: asyncpg.Connection, falsified: str, sample: int | None
) -> None:
    async with Node(app, QUICK, dsn, serve=True, work=True) as node:
        await write(connection, *anything(30))
        await caught_up(node)
        verifier = Verifier(node.log, board_view)
        assert (await verifier.live(node.database, sample)).found == 0
        await connection.execute(falsified)
        report = await verifier.live(node.database, sample)
        if sample is None or "insert" not in falsified:  # no sample contains a key that only the history has
            assert [each.column for each in report.differences] == ["history"]


async def test_an_exception_of_a_route_never_counts_as_a_fault_of_the_database(
    dsn: str, connection: asyncpg.Connection
) -> None:
    def route(event: Recorded[PinEvent]) -> UUID:
        raise TimeoutError("a bug")

    async with Node(app, QUICK, dsn, serve=True, work=False) as node:
        await write(connection, *anything(1))
        view = View(Board, fold_board, route, history=True)
        with pytest.raises(CodeFailed, match=r"^TimeoutError: a bug$"):
            await History(app.domain, view, node.log, node.database.pool).row(BOARDS[0], 1)


def test_history_is_refused_for_a_read_model_of_single_streams() -> None:
    with pytest.raises(DefinitionError, match="Note: each of its rows is the fold of one stream"):
        App([Feature([notes], [without, View(Note, fold_note, history=True)])])
    assert app.domain.by_stream(app.domain.view_named("Note"))
    assert not app.domain.by_stream(View(Note, fold_note, route=lambda event: event.data.note_id))
