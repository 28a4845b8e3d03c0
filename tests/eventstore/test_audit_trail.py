"""The audit trail: pages in both directions, filters, subscriptions, and the commands that print it."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from tests.support.commands import clean_environ, run_command
from tests.support.positions import number, text
from tests.support.waiting import until

from headwater.cli.event_lines import LONGEST_DATA, tree_of
from headwater.config import Settings
from headwater.eventstore.audit_trail import END, STATEMENTS, WINDOW, Entry, Trail, Wanted
from headwater.eventstore.log import Append, append
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.result import Result
from headwater.graphql.scope import Scope
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]

ROOT = Path(__file__).parents[2]

RUNG = msgspec.structs.replace(Settings(), poll_seconds=60)
"""No node polls during a test, so that only the doorbell wakes a follower."""


# A log of many kinds -------------------------------------------------------------------------------------------------

STREAMS = {uuid4(): "abc"[place % 3] for place in range(9)}
REQUESTS = [uuid4() for _ in range(6)]
CAUSES = [uuid4() for _ in range(6)]


class Writer:
    """Appends events of any category and type, also such that the app does not know."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    async def write(
        self,
        stream_id: UUID,
        types: Sequence[str],
        *,
        category: str = "thing",
        command_id: UUID | None = None,
        correlation_id: UUID | None = None,
        causation_id: UUID | None = None,
        actor: str | None = None,
        name: str | None = None,
        schema_version: int = 1,
    ) -> UUID:
        """Append one command. Returns its id."""
        command_id = command_id or uuid4()
        events = [(each, schema_version, f'{{"n": {place}}}') for place, each in enumerate(types)]
        correlation_id = correlation_id or command_id
        one = Append(command_id, stream_id, category, None, events, correlation_id, causation_id, actor, name=name)
        await append(self.connection, [one])
        return command_id

    async def write_history(self, commands: int, seed: int = 1) -> None:
        chance = random.Random(seed)
        for request in REQUESTS:
            stream = chance.choice(list(STREAMS))
            await self.write(stream, ["Asked", "Noted"], category=STREAMS[stream], command_id=request, actor="ada")
        for _ in range(commands):
            stream = chance.choice(list(STREAMS))
            await self.write(
                stream,
                chance.choices(["Made", "Moved", "Mended"], k=chance.randint(1, 4)),
                category=STREAMS[stream],
                correlation_id=chance.choice([None, *REQUESTS]),
                causation_id=chance.choice([None, *CAUSES]),
                actor=chance.choice([None, "ada", "bob"]),
                schema_version=chance.randint(1, 3),
            )


@pytest.fixture
def writer(connection: asyncpg.Connection) -> Writer:
    return Writer(connection)


async def everything(connection: asyncpg.Connection) -> list[Entry]:
    """Return all entries, read by a plain query."""
    rows = await connection.fetch("select * from headwater.events order by position")
    names = Entry.__dataclass_fields__
    return [Entry(**{name: row[name] for name in names}) for row in rows]


def matching(wanted: Wanted, entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries that a filter selects, by a model of the filter in Python."""
    return [
        each
        for each in entries
        if wanted.stream_id in (None, each.stream_id)
        and wanted.category in (None, each.category)
        and (wanted.types is None or each.type in wanted.types)
        and wanted.correlation_id in (None, each.correlation_id)
        and wanted.actor in (None, each.actor)
        and (wanted.since is None or each.recorded_at >= wanted.since)
        and (wanted.until is None or each.recorded_at < wanted.until)
    ]


def filters(entries: Sequence[Entry]) -> Iterator[Wanted]:
    """Yield filters with each condition alone and with several."""
    one, later = entries[len(entries) // 3], entries[-len(entries) // 4]
    stream, request = one.stream_id, REQUESTS[0]
    yield Wanted()
    for narrowed in (Wanted(), Wanted(stream_id=stream), Wanted(correlation_id=request)):
        yield narrowed
        yield replace(narrowed, category=one.category)
        yield replace(narrowed, types=["Moved", "Asked"])
        yield replace(narrowed, actor="ada")
        yield replace(narrowed, since=one.recorded_at)
        yield replace(narrowed, until=later.recorded_at)
        yield replace(narrowed, since=one.recorded_at + timedelta(microseconds=1), until=later.recorded_at, actor="bob")
    yield Wanted(stream_id=stream, correlation_id=request)
    yield Wanted(types=[])
    yield Wanted(stream_id=uuid4())
    yield Wanted(correlation_id=uuid4())
    yield Wanted(since=later.recorded_at + timedelta(days=1))


# Pages ---------------------------------------------------------------------------------------------------------------


async def test_pages_in_both_directions_return_every_matching_event(start: Start, writer: Writer) -> None:
    node = await start(work=False)
    await writer.write_history(80)
    trail, entries = node.serving.trail, await everything(writer.connection)
    for wanted in filters(entries):
        expected = matching(wanted, entries)
        for limit in (1, 7, 1000):
            assert [each async for page in forward(trail, wanted, limit) for each in page] == expected, wanted
            back = [page async for page in backward(trail, wanted, limit)]
            assert [each for page in reversed(back) for each in page] == expected, wanted
        assert [each async for each in trail.walk(wanted, 0, len(entries))] == expected, wanted


async def forward(trail: Trail, wanted: Wanted, limit: int) -> AsyncIterator[list[Entry]]:
    after = 0
    while page := await trail.read(wanted, after, limit=limit):
        yield page
        after = page[-1].position


async def backward(trail: Trail, wanted: Wanted, limit: int) -> AsyncIterator[list[Entry]]:
    before = END
    while page := await trail.read(wanted, 0, before, limit=limit, backward=True):
        yield page
        before = page[0].position


EVENTS = """
query($filter: EventFilter, $first: Int, $after: Position, $last: Int, $before: Position) {
  events(filter: $filter, first: $first, after: $after, last: $last, before: $before) {
    edges { cursor node { position } } nodes { position }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}
"""


async def ask(node: Node, query: str = EVENTS, **variables: Any) -> tuple[Any, list[tuple[str, str]]]:
    """Return the data as a client receives it, and message and code of each error."""
    result = await Engine(node.app.schema).execute(GraphQLRequest(query, variables=variables), Scope(node.serving))
    errors = [(error["message"], error["extensions"]["code"]) for error in result.errors]
    return json.loads(result.json).get("data"), errors


def shown_to_clients(node: Node, entry: Entry) -> dict[str, Any]:
    """Return an event as a client receives it."""
    return {"position": text(node, entry.position), **fields_of(entry)}


def fields_of(entry: Entry) -> dict[str, Any]:
    """Return an event as both a client and the command line show it, except for its position."""
    return {
        "eventId": str(entry.event_id),
        "streamId": str(entry.stream_id),
        "category": entry.category,
        "version": entry.version,
        "type": entry.type,
        "schemaVersion": entry.schema_version,
        "data": json.loads(entry.data),
        "recordedAt": entry.recorded_at.isoformat().replace("+00:00", "Z"),
        "actor": entry.actor,
        "commandId": str(entry.command_id),
        "correlationId": str(entry.correlation_id),
        "causationId": None if entry.causation_id is None else str(entry.causation_id),
    }


WHOLE_EVENTS = """
query($filter: EventFilter, $first: Int, $after: Position, $last: Int, $before: Position) {
  events(filter: $filter, first: $first, after: $after, last: $last, before: $before) {
    nodes {
      position eventId streamId category version type schemaVersion data recordedAt actor
      commandId correlationId causationId
    }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}
"""

CLIENT_NAMES = {
    "stream_id": "streamId",
    "category": "category",
    "types": "types",
    "correlation_id": "correlationId",
    "actor": "actor",
    "since": "from",
    "until": "to",
}


def client_filter(wanted: Wanted) -> dict[str, Any]:
    """Return a filter as a client writes it."""
    values = {CLIENT_NAMES[name]: value for name, value in asdict(wanted).items() if value is not None}
    return msgspec.to_builtins(values)  # type: ignore[no-any-return]  # a dict stays a dict


async def pages_of(node: Node, wanted: Wanted, *, backward: bool) -> list[list[dict[str, Any]]]:
    """Return all pages that a client reads one after the other."""
    pages: list[list[dict[str, Any]]] = []
    place: dict[str, str] = {}
    size, more = ("last", "hasPreviousPage") if backward else ("first", "hasNextPage")
    while True:
        data, errors = await ask(node, WHOLE_EVENTS, filter=client_filter(wanted), **{size: 40}, **place)
        assert errors == []
        page, info = data["events"]["nodes"], data["events"]["pageInfo"]
        pages.append(page)
        if not info[more]:
            return pages
        place = {"before": info["startCursor"]} if backward else {"after": info["endCursor"]}


async def test_clients_receive_the_events_that_their_filter_selects(start: Start, writer: Writer) -> None:
    node = await start(work=False)
    await writer.write_history(80)
    entries, narrowing = await everything(writer.connection), set()
    for wanted in filters(entries):
        expected = [shown_to_clients(node, entry) for entry in matching(wanted, entries)]
        if 0 < len(expected) < len(entries):
            narrowing |= {name for name in CLIENT_NAMES if wanted == Wanted(**{name: getattr(wanted, name)})}
        assert [each for page in await pages_of(node, wanted, backward=False) for each in page] == expected, wanted
        back = await pages_of(node, wanted, backward=True)
        assert [each for page in reversed(back) for each in page] == expected, wanted
        if wanted.until is None:
            async with subscribed(node, filter=client_filter(wanted), after="0") as stream:
                assert await take(stream, len(expected)) == [number(each["position"]) for each in expected], wanted
    assert narrowing == set(CLIENT_NAMES), "each condition alone selects some events, but not all"


async def test_page_info_tells_if_there_are_events_before_and_after_the_page(start: Start, writer: Writer) -> None:
    node, stream = await start(work=False), uuid4()
    for _ in range(3):
        await writer.write(stream, ["A"])  # 1, 3, 5
        await writer.write(uuid4(), ["B"])  # 2, 4, 6
    cases: list[tuple[dict[str, Any], list[int], bool, bool]] = [
        ({}, [1, 3, 5], False, False),
        ({"first": 2}, [1, 3], False, True),
        ({"first": 2, "after": "1"}, [3, 5], True, False),
        ({"first": 1, "after": "2"}, [3], True, True),
        ({"first": 0}, [], False, True),
        ({"first": 2, "after": "5"}, [], True, False),
        ({"first": 2, "after": "99"}, [], True, False),
        ({"last": 2}, [3, 5], True, False),
        ({"last": 2, "before": "5"}, [1, 3], False, True),
        ({"last": 1, "before": "4"}, [3], True, True),
        ({"last": 5, "before": "1"}, [], False, True),
        ({"last": 0}, [], True, False),
    ]
    for given in ({"streamId": str(stream)}, {"types": ["A"]}):
        for arguments, numbers, previous, following in cases:
            expected = [text(node, each) for each in numbers]
            data, errors = await ask(node, filter=given, **arguments)
            assert errors == []
            page = data["events"]
            assert [each["position"] for each in page["nodes"]] == expected, arguments
            assert page["edges"] == [{"cursor": each, "node": {"position": each}} for each in expected]
            assert page["pageInfo"] == {
                "hasPreviousPage": previous,
                "hasNextPage": following,
                "startCursor": expected[0] if expected else None,
                "endCursor": expected[-1] if expected else None,
            }, arguments


@pytest.mark.parametrize(
    "arguments",
    [
        {"first": 501},
        {"first": -1},
        {"first": 1, "last": 1},
        {"before": "3"},
        {"filter": {"actor": None}},
        {"filter": {"from": None}},
        {"filter": {"types": ["A"] * 101}},
        {"filter": {"category": "\0"}},
        {"after": "nowhere"},
    ],
)
async def test_invalid_arguments_are_bad_user_input(start: Start, arguments: dict[str, Any]) -> None:
    _, errors = await ask(await start(work=False), **arguments)
    assert [code for _, code in errors] == ["BAD_USER_INPUT"]


async def test_a_search_that_exceeds_the_statement_timeout_is_search_too_wide(start: Start, writer: Writer) -> None:
    node = await start(work=False, settings=msgspec.structs.replace(Settings(), statement_timeout_seconds=0.5))
    message = (
        "The search went through too much of the log in the time it has. Narrow it by stream, correlation or time."
    )
    async with writer.connection.transaction():
        # The search waits for the lock until the timeout, as a search through years of events would.
        await writer.connection.execute("lock table headwater.events in access exclusive mode")
        assert await ask(node, filter={"actor": "unknown"}) == (None, [(message, "SEARCH_TOO_WIDE")])


async def test_data_is_returned_as_it_was_written(start: Start, writer: Writer) -> None:
    node, stream = await start(work=False), uuid4()
    stored = '{"b": 12345678901234567890, "a":  1.10, "a": "ä\\u0000"}'
    one = Append(command := uuid4(), stream, "thing", None, [("Gone", 7, stored)], command, None, "ada")
    await append(writer.connection, [one])
    query = "{ events { nodes { data type schemaVersion version actor commandId correlationId causationId } } }"
    result = await Engine(node.app.schema).execute(GraphQLRequest(query), Scope(node.serving))
    assert stored.encode() in result.json
    expected = {"type": "Gone", "schemaVersion": 7, "version": 1, "actor": "ada", "causationId": None}
    expected |= {"commandId": str(command), "correlationId": str(command), "data": json.loads(stored)}
    assert json.loads(result.json) == {"data": {"events": {"nodes": [expected]}}}


async def test_every_statement_of_the_trail_uses_indexes(writer: Writer, connection: asyncpg.Connection) -> None:
    stream, request = uuid4(), uuid4()
    await writer.write(stream, ["A", "B"], command_id=request)
    await writer.write(stream, ["C"], correlation_id=request)
    for _ in range(40):
        await writer.write(uuid4(), ["A"] * 500)
    await connection.execute("analyze headwater.events")
    narrow = (0, END, None, None, None, 51)
    correlated, streamed = (*narrow, request), (*narrow, stream, 0, 2**31 - 1, None)
    for going_back in (False, True):
        assert await indexes(connection, STATEMENTS["page", going_back], *narrow) == {"events_pkey"}
        assert await indexes(connection, STATEMENTS["page_of_stream", going_back], *streamed) == {
            "events_stream_version_key"
        }
        assert await indexes(connection, STATEMENTS["page_of_correlation", going_back], *correlated) == {
            "events_correlation",
            "events_command_ordinal_key",
        }
    assert await indexes(connection, STATEMENTS["version_at", False], stream, 3) == {"events_stream_version_key"}


async def indexes(connection: asyncpg.Connection, statement: str, *values: Any) -> set[str]:
    """Return the indexes of a statement's plan, after checking that it has no sequential scan."""
    [[plan]] = await connection.fetch(f"explain (format json) {statement}", *values)
    assert '"Seq Scan"' not in plan, plan
    return set(_named(json.loads(plan), "Index Name"))


def _named(plan: Any, name: str) -> Iterator[str]:
    if isinstance(plan, dict):
        yield from ([plan[name]] if name in plan else [])
        plan = list(plan.values())
    if isinstance(plan, list):
        for part in plan:
            yield from _named(part, name)


# Following -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def subscribed(node: Node, **arguments: Any) -> AsyncIterator[AsyncGenerator[Result, None]]:
    query = """subscription($filter: EventFilter, $after: Position) {
        events(filter: $filter, after: $after) { position type }
    }"""
    stream = await Engine(node.app.schema).subscribe(GraphQLRequest(query, variables=arguments), Scope(node.serving))
    assert not isinstance(stream, Result), stream.errors
    async with aclosing(stream):
        yield stream


async def take(stream: AsyncGenerator[Result, None], count: int) -> list[int]:
    """Return the positions of the next events."""
    positions: list[int] = []
    async with asyncio.timeout(20):
        while len(positions) < count:
            data = json.loads((await anext(stream)).json)["data"]["events"]
            positions.append(number(data["position"]))
    return positions


async def test_a_subscription_misses_no_event_when_the_listener_is_killed(start: Start, writer: Writer) -> None:
    node = await start(work=False, settings=RUNG)
    await writer.write(uuid4(), ["A"] * 5)
    async with subscribed(node, after="2") as stream:
        assert await take(stream, 3) == [3, 4, 5]
        seen: list[int] = []
        for _ in range(5):
            waiting = asyncio.create_task(take(stream, 20))
            await kill_listener(writer.connection)
            await writer.write(uuid4(), ["A"] * 20)
            seen += await waiting
        assert seen == list(range(6, 106))


async def kill_listener(connection: asyncpg.Connection) -> None:
    """Kill the listener's connection as soon as there is one."""
    statement = """select pg_terminate_backend(pid) from pg_stat_activity
                    where application_name = 'headwater listener' and datname = current_database()"""
    async with asyncio.timeout(10):
        while not await connection.fetch(statement):
            pass  # without a pause, because the connection must be killed as soon as it exists


async def test_a_subscription_starts_at_the_end_of_the_log_or_at_the_given_time(start: Start, writer: Writer) -> None:
    node = await start(work=False, settings=RUNG)
    await writer.write(uuid4(), ["A", "B"])
    async with subscribed(node) as stream:
        first = asyncio.create_task(take(stream, 2))
        await until(lambda: node.telemetry.followers)
        await writer.write(uuid4(), ["B", "A"])
        assert await first == [3, 4]
    since = (await everything(writer.connection))[0].recorded_at.isoformat()
    async with subscribed(node, filter={"types": ["B"], "from": since}) as stream:
        assert await take(stream, 2) == [2, 3]
    assert node.telemetry.followers == 0


@pytest.mark.parametrize("arguments", [{"after": "9"}, {"filter": {"to": "2040-01-01T00:00:00Z"}}])
async def test_a_subscription_with_invalid_arguments_is_bad_user_input(start: Start, arguments: dict[str, Any]) -> None:
    node = await start(work=False)
    async with subscribed(node, **arguments) as stream:
        result = await anext(stream)
    assert [error["extensions"]["code"] for error in result.errors] == ["BAD_USER_INPUT"]


async def test_a_slow_reader_receives_every_event_in_order(start: Start, writer: Writer) -> None:
    node = await start(work=False)
    await writer.write(uuid4(), ["A"] * 2_000)
    async with subscribed(node, after="0") as stream:
        first = await take(stream, 1)
        await writer.write(uuid4(), ["A"] * 2_000)
        assert first + await take(stream, 3_999) == list(range(1, 4_001))


async def test_a_subscription_whose_filter_matches_few_events_searches_in_windows(start: Start, writer: Writer) -> None:
    node = await start(work=False)
    for _ in range(3):
        await writer.write(uuid4(), ["A"] * (WINDOW // 2))
    await writer.write(uuid4(), ["B"])
    async with subscribed(node, after="0", filter={"types": ["B"]}) as stream:
        assert await take(stream, 1) == [3 * (WINDOW // 2) + 1]


# The command line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def environ(dsn: str) -> dict[str, str]:
    return clean_environ() | {"DATABASE_URL": dsn, "HEADWATER_POLL_SECONDS": "60"}


async def start_headwater(environ: dict[str, str], *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headwater", "events", *arguments), cwd=ROOT, env=environ, stdout=-1, stderr=-1
    )


async def run(environ: dict[str, str], *arguments: str) -> tuple[int, list[str]]:
    """Run a command. Returns the exit code and the printed lines."""
    code, out, err = await run_command("events", *arguments, environ=environ)
    return code, (out + err).splitlines()


async def test_tail_prints_the_last_events_or_those_that_its_options_select(
    environ: dict[str, str], writer: Writer
) -> None:
    stream = uuid4()
    await writer.write(stream, ["A"] * 20, actor="ada\x1b[2J", category="first")
    await writer.write(uuid4(), ["B", "C"], category="second")

    code, lines = await run(environ, "tail")
    assert (code, [int(line.split()[0]) for line in lines]) == (0, list(range(3, 23)))
    assert lines[0].endswith(f'first {stream} v3  A  {{"n": 2}}  by ada\\x1b[2J')

    code, lines = await run(environ, "tail", "--json", "--after", "19", "--type", "A", "--type", "C")
    assert (code, [(each["position"], each["type"]) for each in map(json.loads, lines)]) == (
        0,
        [("20", "A"), ("22", "C")],
    )

    code, lines = await run(environ, "tail", "--category", "first", "--stream", str(stream))
    assert (code, len(lines)) == (0, 20)

    complaint = "headwater: --after 23 must be a position of the log, which ends at 22"
    assert await run(environ, "tail", "--follow", "--after", "23") == (1, [complaint])


async def test_tail_as_json_prints_every_stored_field(environ: dict[str, str], writer: Writer) -> None:
    ids = {name: uuid4() for name in ("command_id", "correlation_id", "causation_id")}
    await writer.write(uuid4(), ["A", "B"], category="first", actor="ada\x1b[2J", name="Do", schema_version=3, **ids)
    await writer.write(uuid4(), ["C"])
    code, lines = await run(environ, "tail", "--json")
    entries = await everything(writer.connection)
    expected = [{"position": str(entry.position), **fields_of(entry), "command": entry.command} for entry in entries]
    assert (code, [json.loads(line) for line in lines]) == (0, expected)
    assert [each["command"] for each in expected] == ["Do", "Do", None]


async def test_tail_follows_the_log_until_it_is_interrupted(environ: dict[str, str], writer: Writer) -> None:
    await writer.write(uuid4(), ["A"])
    process = await start_headwater(environ, "tail", "--follow", "--json", "--after", "0")
    assert process.stdout is not None
    try:
        seen = []
        for expected in range(1, 6):
            line = await asyncio.wait_for(process.stdout.readline(), 20)
            seen.append(json.loads(line)["position"])
            assert seen[-1] == str(expected)
            if expected == 2:
                await kill_listener(writer.connection)
            await writer.write(uuid4(), ["A"])
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_trace_prints_commands_and_events_below_their_causes(environ: dict[str, str], writer: Writer) -> None:
    transfer, account, other = uuid4(), uuid4(), uuid4()
    request = await writer.write(transfer, ["Requested"], category="transfer", actor="ada", name="Request")
    requested = await event_at(writer.connection, 1)
    withdraw = await writer.write(
        account,
        ["Withdrawn", "Noted"],
        correlation_id=request,
        causation_id=requested,
        actor="saga",
        category="account",
    )
    await writer.write(uuid4(), ["Unrelated"])
    by_command = await writer.write(other, ["Deposited"], correlation_id=request, causation_id=withdraw)

    code, lines = await run(environ, "trace", str(request))

    times = {row[0]: shown(row[1]) for row in await moments(writer.connection)}
    assert (code, lines) == (
        0,
        [
            f"Request {request}  {times[1]}  by ada",
            f'  Requested at 1  transfer {transfer} v1  {{"n": 0}}',
            f"    command {withdraw}  {times[2]}  by saga",
            f'      Withdrawn at 2  account {account} v1  {{"n": 0}}',
            f'      Noted at 3  account {account} v2  {{"n": 1}}',
            f"      command {by_command}  {times[5]}",
            f'        Deposited at 5  thing {other} v1  {{"n": 0}}',
        ],
    )
    unknown = uuid4()
    assert await run(environ, "trace", str(unknown)) == (
        1,
        [f"headwater: the log holds no event with correlation id {unknown}; check the id"],
    )


async def event_at(connection: asyncpg.Connection, position: int) -> UUID:
    return await connection.fetchval("select event_id from headwater.events where position = $1", position)  # type: ignore[no-any-return]  # uuid


async def moments(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    return await connection.fetch("select position, recorded_at from headwater.events")


def shown(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_a_tree_has_each_event_once_whatever_the_causes_are() -> None:
    """The causes may form circles, be unknown, or form very long chains."""
    chance = random.Random(1)
    moment = datetime.fromisoformat("2026-01-01T00:00:00Z")
    for size in (1, 2, 10, 3_000):
        ids = [(uuid4(), uuid4()) for _ in range(size)]
        for chain in (True, False):
            entries = []
            for place, (command, event) in enumerate(ids):
                strange = chance.choice([None, uuid4(), *ids[place], *chance.choice(ids)])
                cause = (ids[place - 1][1] if place else None) if chain else strange
                entries.append(
                    Entry(place + 1, event, uuid4(), "c", 1, "T", 1, "{}", moment, None, command, ids[0][0], cause)
                )
            lines = list(tree_of(entries))
            assert sorted(line.split()[2] for line in lines if " at " in line) == sorted(
                str(e.position) for e in entries
            )
            assert len(lines) == 2 * size
            if chain:
                assert [len(line) - len(line.lstrip()) for line in lines] == list(range(0, 4 * size, 2))


def test_a_tree_cuts_long_data_of_events() -> None:
    command, moment = uuid4(), datetime.fromisoformat("2026-01-01T00:00:00Z")
    entries = [
        Entry(place, uuid4(), uuid4(), "c", 1, "T", 1, data, moment, None, command, command, None)
        for place, data in enumerate(("x" * LONGEST_DATA, "y" * 1_000_000), 1)
    ]
    _, whole, cut = tree_of(entries)
    assert whole.endswith("  " + "x" * LONGEST_DATA)
    assert cut.endswith("  " + "y" * LONGEST_DATA + "…")
