"""`headwater.append`: its verdicts and its log equal those of a model in Python, and its plans use indexes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import Any
from uuid import RFC_4122, UUID

import asyncpg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from headwater.domain.claims import Release, Take
from headwater.domain.messages import Refusal
from headwater.eventstore.log import NEW, Append, Verdict, append
from headwater.ids import new_id

RIGHT = -1
"""Stands for the version of the stream if all earlier commands of the call are accepted."""


class Held(Refusal):
    """Another stream holds the claim."""


# ------------------------------------------------------------------------------------------------------------ the model


@dataclass(frozen=True)
class Draft:
    """A command, with small numbers for its ids.

    claims: (True to take it, value) of each. holds: (stream, how far its version is from the right one) of each.
    """

    command: int
    stream: int
    expected: int | None = None
    events: int = 1
    claims: tuple[tuple[bool, str], ...] = ()
    holds: tuple[tuple[int, int], ...] = ()


@dataclass
class Model:
    """A model of the function that judges one command after another.

    moved: the places of commands that hold a stream which has moved on. Such a command loses, and all are judged anew.
    """

    position: int
    versions: dict[UUID, int] = field(default_factory=dict)
    done: dict[UUID, tuple[int, int, UUID]] = field(default_factory=dict)
    claims: dict[tuple[str, str], UUID] = field(default_factory=dict)
    log: list[tuple[Any, ...]] = field(default_factory=list)

    def append(self, batch: Sequence[Append]) -> list[tuple[Any, ...]]:
        """Return each verdict with its facts, as `_facts` does."""
        moved: set[int] = set()
        while True:
            trial = deepcopy(self)
            answers, newly_moved = trial._append(batch, moved)
            if not newly_moved:
                vars(self).update(vars(trial))
                return answers
            moved |= newly_moved

    def _append(self, batch: Sequence[Append], moved: set[int]) -> tuple[list[tuple[Any, ...]], set[int]]:
        newly_moved: set[int] = set()
        named: set[object] = set()
        lost: set[UUID] = set()
        done: dict[UUID, tuple[int, int, UUID]] = {}
        answers = []
        for place, each in enumerate(batch):
            names = {each.command_id, *((claim.name, claim.value) for claim in each.claims)}
            holds = all(self.versions.get(stream_id, 0) == version for stream_id, version in each.holds)
            answer = self._judge(each, behind=bool(names & named) or each.stream_id in lost, moved=place in moved)
            named |= names
            if answer[0] is Verdict.ACCEPTED and not holds:
                newly_moved.add(place)
            if answer[0] is Verdict.ACCEPTED:
                done[each.command_id] = answer[1:]
            else:
                lost.add(each.stream_id)
            answers.append(answer)
        self.done |= done
        return answers, newly_moved

    def _judge(self, each: Append, *, behind: bool, moved: bool) -> tuple[Any, ...]:
        actual = self.versions.get(each.stream_id, 0)
        if each.command_id in self.done:
            return (Verdict.DONE, *self.done[each.command_id])
        if behind:
            return (Verdict.BEHIND,)
        if each.expected not in (None, actual):
            return Verdict.CONFLICT, actual
        for claim in each.claims:
            holder = self.claims.get((claim.name, claim.value), each.stream_id)
            if isinstance(claim, Take) and holder != each.stream_id:
                return Verdict.TAKEN, claim
        if moved:
            return (Verdict.MOVED,)
        return self._accept(each, actual)

    def _accept(self, each: Append, version: int) -> tuple[Any, ...]:
        for ordinal, event in enumerate(each.events, 1):
            self.position, version = self.position + 1, version + 1
            self.log.append((self.position, each.stream_id, version, ordinal, *event, each.command_id, *_origin(each)))
        for claim in each.claims:
            if isinstance(claim, Take):
                self.claims[claim.name, claim.value] = each.stream_id
            elif self.claims.get((claim.name, claim.value)) == each.stream_id:
                del self.claims[claim.name, claim.value]
        self.versions[each.stream_id] = version
        return Verdict.ACCEPTED, version, self.position, each.stream_id


def _origin(each: Append) -> tuple[Any, ...]:
    return each.category, each.correlation_id, each.causation_id, each.actor, each.tenant, each.traceparent


# ----------------------------------------------------------------------------------------------------- the model's test

HOLDS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 0, 0, -1, 1])), max_size=2).map(tuple)
CLAIMS = st.lists(st.tuples(st.booleans(), st.sampled_from("ab")), max_size=3).map(tuple)
DRAFTS = st.builds(
    Draft,
    command=st.integers(0, 11),
    stream=st.integers(0, 2),
    expected=st.sampled_from([RIGHT, RIGHT, RIGHT, None, NEW, 1, 2]),
    events=st.integers(0, 3),
    claims=st.one_of(st.just(()), CLAIMS),
    holds=st.one_of(st.just(()), HOLDS),
)
PLAIN = st.builds(  # what `append_plain` takes, and some expected versions that it does not take
    Draft,
    command=st.integers(0, 11),
    stream=st.integers(0, 2),
    expected=st.sampled_from([*[RIGHT] * 9, NEW, 1, 2]),
)
CALLS = st.lists(
    st.lists(DRAFTS, min_size=1, max_size=6) | st.lists(PLAIN, min_size=1, max_size=6), min_size=1, max_size=6
)
_examples = count(1)


async def test_ids_of_events_sort_by_their_time(connection: asyncpg.Connection) -> None:
    """PostgreSQL makes them, or before version 18 the function of the schema."""
    await connection.execute("set search_path = headwater")
    before = time.time_ns() // 1_000_000
    ids: list[UUID] = [await connection.fetchval("select uuidv7()") for _ in range(500)]
    after = time.time_ns() // 1_000_000
    assert {(each.version, each.variant) for each in ids} == {(7, RFC_4122)}
    assert ids == sorted(set(ids))
    assert before <= ids[0].int >> 80 <= ids[-1].int >> 80 <= after


@settings(
    max_examples=120,
    deadline=None,
    # One database for all examples: each has its own ids and claims, and starts at the end of the log.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(calls=CALLS)
@example(calls=[[Draft(0, 0, claims=((True, "a"), (False, "a")))], [Draft(1, 1, claims=((True, "a"),))]])
@example(calls=[[Draft(0, 0, expected=1)], [Draft(1, 0, expected=RIGHT)]])
@example(calls=[[Draft(0, 0, holds=((1, 0),)), Draft(1, 1, holds=((0, -1),))]])  # write skew in one call
@example(
    calls=[[Draft(0, 0, holds=((1, 1),)), Draft(1, 1, holds=((0, 0),)), Draft(2, 2, holds=((1, 0),))]]
)  # a cascade
@example(calls=[[Draft(0, 0, claims=((False, "a"), (True, "a"), (False, "a"), (True, "a")))]])
async def test_verdicts_log_and_claims_equal_those_of_the_model(
    connection: asyncpg.Connection, calls: list[list[Draft]]
) -> None:
    run = next(_examples)
    head = await connection.fetchval("select position from headwater.head")
    model = Model(head)
    for drafts in calls:
        batch = list(_batch(run, drafts, model))
        answers = [_facts(each) for each in await append(connection, batch)]
        assert answers == model.append(batch)
    assert await _log_after(connection, head) == model.log
    assert await _claims_of(connection, run) == model.claims
    assert await connection.fetchval("select position from headwater.head") == model.position


def _batch(run: int, drafts: list[Draft], model: Model) -> Iterator[Append]:
    versions = dict(model.versions)
    for draft in drafts:
        command_id, stream_id = UUID(int=run << 64 | 1 << 32 | draft.command), UUID(int=run << 64 | draft.stream)
        right = versions.get(stream_id, 0)
        versions[stream_id] = right + draft.events
        yield Append(
            command_id,
            stream_id,
            f"category {draft.stream}",
            right if draft.expected == RIGHT else draft.expected,
            [(f"Type{k}", k + 1, json.dumps({"é": k, "by": draft.command})) for k in range(draft.events)],
            UUID(int=draft.command),
            causation_id=UUID(int=run) if draft.command % 2 else None,
            actor=f"actor {draft.command}" if draft.command % 3 else None,
            tenant="tenant" if draft.stream else None,
            traceparent=f"00-{run:032x}-{1:016x}-01" if draft.command % 2 else None,
            claims=[
                Take("letter", f"{run} {value}", Held()) if taken else Release("letter", f"{run} {value}")
                for taken, value in draft.claims
            ],
            holds=[
                (UUID(int=run << 64 | stream), versions.get(UUID(int=run << 64 | stream), 0) + off)
                for stream, off in draft.holds
                if stream != draft.stream
            ],
        )


def _facts(answer: Any) -> tuple[Any, ...]:
    match answer.verdict:
        case Verdict.ACCEPTED | Verdict.DONE:
            return answer.verdict, answer.version, answer.position, answer.stream_id
        case Verdict.CONFLICT:
            return answer.verdict, answer.version
        case Verdict.TAKEN:
            return answer.verdict, answer.blocker
        case _:
            return (answer.verdict,)


async def _log_after(connection: asyncpg.Connection, head: int) -> list[tuple[Any, ...]]:
    """Return the events after a position, without the columns that the function generates, which are checked."""
    rows = await connection.fetch("select * from headwater.events where position > $1 order by position", head)
    times: list[datetime] = [row["recorded_at"] for row in rows]
    assert times == sorted(times)
    assert len({row["event_id"] for row in rows}) == len(rows)
    assert {row["event_id"].version for row in rows} <= {7}
    columns = (
        "position stream_id version ordinal type schema_version data"
        " command_id category correlation_id causation_id actor tenant traceparent"
    )
    return [tuple(row[column] for column in columns.split()) for row in rows]


async def _claims_of(connection: asyncpg.Connection, run: int) -> dict[tuple[str, str], UUID]:
    rows = await connection.fetch("select * from headwater.claims where starts_with(value, $1)", f"{run} ")
    return {(row["name"], row["value"]): row["stream_id"] for row in rows}


@pytest.mark.parametrize("expected", [NEW, None], ids=["append_plain", "append"])
async def test_all_events_of_a_call_have_one_time_which_is_never_before_the_last_one(
    connection: asyncpg.Connection, expected: int | None
) -> None:
    def two() -> list[Append]:
        return [_deposit(new_id(), expected=expected), _deposit(new_id(), expected=expected)]

    await append(connection, two())
    ahead = await connection.fetchval(  # as if the clock had been set back since the last event
        "update headwater.head set recorded_at = now() + interval '1 day' returning recorded_at"
    )
    await append(connection, two())
    times = [row[0] for row in await connection.fetch("select recorded_at from headwater.events order by position")]
    assert times[0] == times[1] < ahead
    assert times[2:] == [ahead, ahead]
    assert await connection.fetchval("select recorded_at from headwater.head") == ahead


async def test_a_failed_call_writes_nothing(connection: asyncpg.Connection) -> None:
    stream = new_id()
    await append(connection, [_deposit(stream)])
    with pytest.raises(asyncpg.InvalidTextRepresentationError):
        await append(connection, [_deposit(new_id()), _deposit(new_id(), data="{no json")])
    (next_one,) = await append(connection, [_deposit(stream)])
    assert (next_one.position, next_one.version) == (2, 2)
    assert await connection.fetchval("select array_agg(position order by position) from headwater.events") == [1, 2]


def _deposit(stream_id: UUID, *, expected: int | None = None, data: str = "{}", events: int = 1) -> Append:
    command_id = new_id()
    return Append(command_id, stream_id, "account", expected, [("MoneyDeposited", 1, data)] * events, command_id)


# ---------------------------------------------------------------------------------------------------------- append-only


@pytest.mark.parametrize("role", ["origin", "replica"])
@pytest.mark.parametrize(
    "statement",
    [
        "update headwater.events set actor = 'someone else'",
        "update headwater.events set actor = 'someone else' where false",
        "delete from headwater.events",
        "truncate headwater.events",
        "insert into headwater.events select * from headwater.events on conflict (position) do update set actor = 'me'",
        "merge into headwater.events e using headwater.head h on e.position = h.position when matched then delete",
    ],
)
async def test_events_cannot_be_changed_or_deleted(connection: asyncpg.Connection, role: str, statement: str) -> None:
    await append(connection, [_deposit(new_id())])
    before = await connection.fetch("select * from headwater.events")
    await connection.execute(f"set session_replication_role = {role}")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match=r"headwater\.events is append-only: \w+ is refused"):
        await connection.execute(statement)
    assert await connection.fetch("select * from headwater.events") == before


# ------------------------------------------------------------------------------------------------------------- doorbell


async def test_a_call_rings_the_doorbell_once_if_it_appended_events(connection: asyncpg.Connection, dsn: str) -> None:
    heard: list[object] = []
    sentinel = asyncio.Event()
    listener = await asyncpg.connect(dsn)
    try:

        def hear(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            sentinel.set() if payload == "end" else heard.append(payload)

        await listener.add_listener("headwater", hear)
        stream = new_id()
        three = [_deposit(stream, expected=0), _deposit(stream, expected=1, events=2), _deposit(new_id())]
        await append(connection, three)
        await append(connection, [_deposit(stream, expected=1)])  # conflict
        await append(connection, three)  # done
        await append(connection, [_deposit(stream, events=0)])  # accepted, without events
        await append(connection, [_deposit(stream, expected=1), _deposit(stream, expected=4), _deposit(new_id())])
        await connection.execute("notify headwater, 'end'")
        await asyncio.wait_for(sentinel.wait(), 10)
    finally:
        await listener.close()
    assert heard == ["log:4", "log:5"]


# ------------------------------------------------------------------------------------------------------------- the plan


MODES = pytest.mark.parametrize("mode", ["force_custom_plan", "auto", "force_generic_plan"])


@MODES
async def test_append_reads_tables_through_indexes_only(connection: asyncpg.Connection, mode: str) -> None:
    """Small and large calls, from an empty log, whose generic plan may stay in use, to a log of 20,000 events."""
    indexes = {"events_stream_version_key", "events_command_ordinal_key"}
    await _check_plans(connection, mode, indexes, lambda size: [_command(place) for place in range(size)])


@MODES
async def test_append_plain_reads_tables_through_indexes_only(connection: asyncpg.Connection, mode: str) -> None:
    """One-event commands on known streams."""
    streams = [new_id() for _ in range(300)]
    versions = dict.fromkeys(streams, 1)
    await append(connection, [_deposit(stream, expected=NEW) for stream in streams])

    def next_commands(size: int) -> list[Append]:
        batch = [_deposit(stream, expected=versions[stream]) for stream in streams[:size]]
        versions.update({each.stream_id: each.expected + 1 for each in batch})  # type: ignore[operator]  # never None
        return batch

    await _check_plans(connection, mode, {"events_stream_version_key"}, next_commands)


@MODES
async def test_the_cost_of_a_claim_does_not_grow_with_the_size_of_the_call(
    connection: asyncpg.Connection, mode: str
) -> None:
    """Four times as many commands touch about four times as many rows."""
    await _fill(connection, 2_000)
    plans = await _plans(connection, mode, analyze=True)
    touched = []
    for size in (*[1] * 6, 50, 200):
        batch = [_deposit(new_id(), expected=NEW) for _ in range(size)]
        for each in batch:
            each.claims = [Release("email", f"{new_id()}"), Take("email", f"{new_id()}", Held())]
        plans.clear()
        await append(connection, batch)
        touched.append(sum(_rows_touched(node) for plan in plans for node in _nodes(plan)))
    small, large = touched[-2:]
    assert small > 1_000
    assert large < 5 * small


def _rows_touched(node: dict[str, Any]) -> int:
    removed = sum(rows for name, rows in node.items() if name.startswith("Rows Removed"))
    return int((node["Actual Rows"] + removed) * node["Actual Loops"])


async def _check_plans(
    connection: asyncpg.Connection, mode: str, indexes: set[str], batch_of: Callable[[int], list[Append]]
) -> None:
    plans = await _plans(connection, mode)
    for _ in range(2):
        for size in (*[1] * 7, 10, 300, 300):  # PostgreSQL considers a generic plan from the sixth call on
            batch = batch_of(size)
            plans.clear()
            answers = await append(connection, batch)
            assert {each.verdict for each in answers} == {Verdict.ACCEPTED}
            _check([node for plan in plans for node in _nodes(plan)], indexes)
        await _fill(connection, 20_000)


async def _plans(connection: asyncpg.Connection, mode: str, *, analyze: bool = False) -> list[dict[str, Any]]:
    """Return a list to which the plan of each later statement of the connection is added."""
    plans: list[dict[str, Any]] = []
    connection.add_log_listener(lambda _, message: plans.append(_plan_of(message.message)))
    await connection.execute(
        "load 'auto_explain';"
        "set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;"
        f"set auto_explain.log_analyze = {analyze}; set auto_explain.log_timing = off;"
        "set auto_explain.log_level = notice; set auto_explain.log_format = json;"
        f"set plan_cache_mode = {mode}"
    )
    return plans


def _check(nodes: list[dict[str, Any]], indexes: set[str]) -> None:
    scans = [
        node for node in nodes if node.get("Relation Name") in ("events", "claims") and "Scan" in node["Node Type"]
    ]
    assert indexes <= {node.get("Index Name") for node in scans}
    for node in scans:
        assert node["Node Type"] in ("Index Scan", "Index Only Scan"), node
    for node in nodes:
        if node["Node Type"] in ("Hash Join", "Merge Join", "Hash", "Materialize"):
            assert not any(inner.get("Relation Name") == "events" for inner in _nodes(node)), node


async def _fill(connection: asyncpg.Connection, events: int) -> None:
    for _ in range(events // 1000):
        await append(connection, [_deposit(new_id(), expected=NEW, events=2) for _ in range(500)])
    await connection.execute(
        "insert into headwater.claims"
        " select 'email', gen_random_uuid()::text, gen_random_uuid() from generate_series(1, $1)",
        events,
    )
    await connection.execute("analyze headwater.events, headwater.commands, headwater.claims")


def _command(place: int) -> Append:
    """Return a command: every fifth has claims, every seventh holds a stream, every second requires a new stream."""
    one = _deposit(new_id(), expected=NEW if place % 2 else None, events=place % 3)
    if place % 5 == 0:
        one.claims = [Release("email", f"{new_id()}"), Take("email", f"{new_id()}", Held())]
    if place % 7 == 0:
        one.holds = [(new_id(), 0)]
    return one


def _plan_of(message: str) -> dict[str, Any]:
    return json.loads(message[message.index("{") :])["Plan"]  # type: ignore[no-any-return]  # auto_explain's JSON


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)
