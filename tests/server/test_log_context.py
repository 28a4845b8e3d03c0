"""A line that is logged while a request, a command, a step or a reaction is handled names it, and who caused it."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from tests.support import posts
from tests.support.executing import accepted
from tests.support.orders import place, seen
from tests.support.waiting import until
from tests.support.works import app as works

from headwater import App, Command, Decider, Event, Feature, Reactor, Recorded, Schedule
from headwater.commands.dispatcher import Origin
from headwater.logs import JSONForm
from headwater.server.node import Node
from headwater.server.web import Web

Start: TypeAlias = Callable[..., Awaitable[Node]]

logger = logging.getLogger(__name__)


class Jot(Command, creates=True):
    jot_id: UUID
    text: str


class Jotted(Event):
    jot_id: UUID
    text: str


def decide(command: Jot, state: None) -> list[Jotted]:
    logger.warning("deciding")
    if command.text == "bad":
        raise RuntimeError("a bug")
    return [Jotted(jot_id=command.jot_id, text=command.text)]


def evolve(state: None, event: Jotted) -> None: ...


def nothing(due: datetime) -> Jot:
    raise RuntimeError("no command")


def app_with(**options: Any) -> App:
    return App([Feature([Decider("jot", "jot_id", None, decide, evolve)], **options)])


class Kept(logging.Handler):
    """Keeps each record as JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[dict[str, Any]] = []
        self._form = JSONForm()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(json.loads(self._form.format(record)))

    def about(self, text: str) -> list[tuple[str | None, str | None]]:
        """Return actor and correlation id of the lines with this text."""
        found = [each for each in self.records if text in each["message"]]
        return [(each.get("actor"), each.get("correlation_id")) for each in found]


@pytest.fixture
def kept() -> Iterator[Kept]:
    kept = Kept()
    logging.getLogger().addHandler(kept)
    yield kept
    logging.getLogger().removeHandler(kept)


async def post(node: Node, query: str) -> Any:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(Web(node).app), base_url="http://test") as client:
        return (await client.post("/graphql", json={"query": query})).json()


async def test_a_command_is_named_by_its_correlation_id_and_actor(start: Start, kept: Kept) -> None:
    node, correlation = await start(app_with(), work=False), uuid4()
    await accepted(node, Jot(jot_id=uuid4(), text="x"), origin=Origin(correlation, actor="ada"))
    logger.warning("afterwards")
    assert kept.about("deciding") == [("ada", str(correlation))]
    assert kept.about("afterwards") == [(None, None)]


async def test_a_failed_mutation_is_named_by_its_command_id_also_where_its_error_is_logged(
    start: Start, kept: Kept
) -> None:
    node, command_id = await start(app_with(), work=False), uuid4()
    answered = await post(
        node, f'mutation {{ jot(input: {{ text: "bad" }}, commandId: "{command_id}") {{ __typename }} }}'
    )
    assert answered["errors"][0]["message"] == "Internal error"
    assert kept.about("deciding") == kept.about("Internal error") == [(None, str(command_id))]


async def test_lines_of_one_request_have_one_id_and_other_requests_have_others(start: Start, kept: Kept) -> None:
    node = await start(app_with(), work=False)
    for _ in range(2):
        await post(node, 'mutation { a: jot(input: { text: "bad" }) { __typename } }')
    (_, first), (_, second) = kept.about("deciding")
    assert first != second
    assert [correlation for _, correlation in kept.about("Internal error")] == [first, second]


async def test_a_step_of_a_saga_is_named_by_the_correlation_of_its_instance(
    start: Start, connection: asyncpg.Connection, kept: Kept
) -> None:
    node = await start(works)
    order = await place(node, "bug b")
    await seen(connection, order, "parked")
    correlation = await connection.fetchval("select correlation_id from headwater.events where stream_id = $1", order)
    assert set(kept.about("is parked: RuntimeError")) == {("saga Fulfilment", str(correlation))}


async def test_a_schedule_is_named_as_the_actor(start: Start, kept: Kept) -> None:
    await start(app_with(schedules=[Schedule("hourly", nothing, at=datetime.now(UTC))]))
    await until(lambda: kept.about("schedule hourly"))
    ((actor, correlation),) = kept.about("schedule hourly")
    assert actor == "schedule hourly"
    assert correlation is not None


async def test_a_reaction_is_named_by_the_correlation_of_its_event(
    start: Start, connection: asyncpg.Connection, kept: Kept
) -> None:
    async def react(event: Recorded[posts.Posted], key: str) -> None:
        logger.warning("reacting")

    await start(posts.app_of(Reactor("outside", react)), settings=posts.QUICK, serve=False)
    await posts.write(connection, posts.posted(uuid4(), "x"))
    await until(lambda: kept.about("reacting"))
    correlation = await connection.fetchval("select correlation_id from headwater.events")
    assert kept.about("reacting") == [("reactor outside", str(correlation))]
