"""A user's field of any name works from the mutation to the row, or is refused when the class is declared."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias
from uuid import UUID

import pytest

from headwater import (
    App,
    Command,
    Decider,
    Done,
    Event,
    Feature,
    Link,
    ReadModel,
    Recorded,
    Refusal,
    Saga,
    View,
)
from headwater.domain.messages import CommandDeclaration, EventDeclaration
from headwater.domain.read_model import ReadModelDeclaration
from headwater.errors import DefinitionError
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope
from headwater.projections.verify import Verifier
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]

KEYWORDS = ["internal", "creates", "name", "key", "version", "indexes"]
FORMER_ATTRIBUTES = [
    *("event_name", "event_version", "command_name", "model_key", "model_name", "model_version", "model_indexes"),
    *("data", "stream_id", "recorded_at", "event_id", "command_id", "correlation_id", "causation_id", "actor"),
]
PYTHON = ["self", "cls", "args", "kwargs", "type", "tag", "mcls", "bases", "namespace", "class_name", "field", "fields"]
RESOLVERS = ["root", "info", "input", "values", "row", "where", "first", "after", "order", "filter", "message", "code"]
SQL = ["generation", "state", "user", "table", "select", "sequence", "payload", "rows", "value", "keys", "shown_as"]
NAMES = [*KEYWORDS, *FORMER_ATTRIBUTES, *PYTHON, *RESOLVERS, *SQL]
IN_COMMANDS_AND_EVENTS = [*NAMES, "id", "position", "facts", "expected_version"]
NOT_IN_REFUSALS = {"code", "message"}


def message(kind: type[Any], name: str, fields: list[str], **keywords: Any) -> Any:
    """Return a class with these text fields and the key."""
    annotations: dict[str, Any] = {"thing_id": UUID, **dict.fromkeys(fields, str)}
    make: Any = type(kind)
    return make(name, (kind,), {"__annotations__": annotations, "__module__": __name__}, **keywords)


class Taken(Refusal):
    """The name is in use."""


Odd: Any = type(
    "Odd",
    (Refusal,),
    {
        "__annotations__": {name: str for name in NAMES if name not in NOT_IN_REFUSALS},
        "__module__": __name__,
        "__doc__": "It is odd.",
    },
)
Make: Any = message(Command, "Make", IN_COMMANDS_AND_EVENTS, creates=True)
Made: Any = message(Event, "Made", IN_COMMANDS_AND_EVENTS, version=3)
Thing: Any = message(ReadModel, "Thing", NAMES, key="thing_id", indexes=["name", "key"])


def decide(command: Make, state: Made | None) -> Made | Taken | Odd:
    values = {name: getattr(command, name) for name in ("thing_id", *IN_COMMANDS_AND_EVENTS)}
    if command.internal == "odd":
        return Odd(**{name: values[name] for name in NAMES if name not in NOT_IN_REFUSALS})
    return Made(**values)


def evolve(state: Made | None, event: Made) -> Made | None:
    return event


def fold(row: Thing | None, event: Recorded[Made]) -> Thing | None:
    return Thing(**{name: getattr(event.data, name) for name in ("thing_id", *NAMES)})


def react(state: Made | None, event: Made) -> list[Done]:
    return []


things = Decider("thing", "thing_id", None, decide, evolve, snapshot_every=1)
thing_view = View(Thing, fold, history=False)
noting: Any = Saga("Noting", route="thing_id", initial=None, react=react, evolve=evolve)
app = App([Feature([things], [thing_view], sagas=[noting])])


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))


async def ask(node: Node, query: str) -> Any:
    result = await Engine(node.app.schema).execute(GraphQLRequest(query), Scope(node.serving))
    assert result.errors == ()
    return json.loads(result.json)["data"]


def test_fields_with_the_names_of_class_keywords_do_not_change_the_declaration() -> None:
    assert Make.__declared__ == CommandDeclaration("Make", creates=True, internal=False)
    assert Made.__declared__ == EventDeclaration("Made", 3)
    assert Thing.__declared__ == ReadModelDeclaration("Thing", "Things", ("thing_id",), 1, (("name",), ("key",)))


async def test_fields_with_names_of_the_framework_reach_the_row_from_the_mutation(start: Start) -> None:
    node = await start(app)
    given = ", ".join(f'{camel(name)}: "{name} of it"' for name in IN_COMMANDS_AND_EVENTS)
    shown = " ".join(camel(name) for name in NAMES)
    made = await ask(
        node, f"mutation {{ make(input: {{ {given} }}) {{ ... on MakeAccepted {{ thing {{ {shown} }} }} }} }}"
    )
    expected = {camel(name): f"{name} of it" for name in NAMES}
    assert made == {"make": {"thing": expected}}
    found = await ask(
        node,
        f'{{ things(filter: {{ internal: {{ eq: "internal of it" }}, key: {{ startsWith: "key" }} }}, '
        f"orderBy: [MODEL_KEY_ASC, NAME_DESC]) {{ nodes {{ thingId {shown} }} }} }}",
    )
    key = found["things"]["nodes"][0].pop("thingId")
    assert found == {"things": {"nodes": [expected]}}
    events = await ask(node, f'{{ events(filter: {{ streamId: "{key}" }}) {{ nodes {{ type data }} }} }}')
    data = {name: f"{name} of it" for name in IN_COMMANDS_AND_EVENTS}
    assert events == {"events": {"nodes": [{"type": "Made", "data": {"thing_id": key, **data}}]}}
    past = await ask(node, f'{{ thing(thingId: "{key}", asOf: {{ position: "1" }}) {{ {shown} }} }}')
    assert past == {"thing": expected}
    async with node.database.pool.acquire() as connection:
        report = await Verifier(node.log, thing_view, stream_of=app.domain.stream_of(thing_view)).live(
            node.database, None
        )
        assert (report.checked, report.differences) == (1, [])
        assert await connection.fetchval("select internal from read.thing") == "internal of it"


async def test_facts_with_names_of_the_framework_reach_the_client(start: Start) -> None:
    node = await start(app)
    names = [name for name in NAMES if name not in NOT_IN_REFUSALS]
    values = {name: f"{name} of it" for name in IN_COMMANDS_AND_EVENTS} | {"internal": "odd"}
    given = ", ".join(f'{camel(name)}: "{value}"' for name, value in values.items())
    shown = " ".join(map(camel, names))
    answer = await ask(node, f"mutation {{ make(input: {{ {given} }}) {{ ... on Odd {{ code message {shown} }} }} }}")
    facts = {camel(name): values[name] for name in names}
    assert answer == {"make": {"code": "ODD", "message": "It is odd.", **facts}}


@pytest.mark.parametrize("name", ["code", "facts", "message"])
def test_a_refusal_cannot_have_a_field_that_every_refusal_has(name: str) -> None:
    with pytest.raises(DefinitionError, match=f"^Full.{name}: every refusal has a `{name}` of its own; rename it"):
        type("Full", (Refusal,), {"__annotations__": {name: str}, "__module__": __name__})


@pytest.mark.parametrize("name", ["id", "position"])
def test_a_read_model_cannot_have_a_field_that_every_row_has(name: str) -> None:
    model = message(ReadModel, "Thing", [name], key="thing_id")

    def fold(row: Any, event: Recorded[Made]) -> Any:
        return None

    with pytest.raises(DefinitionError, match=f"^Thing.{name}: "):
        View(model, fold)


@pytest.mark.parametrize("name", ["__declared__", "__declare__", "__struct_fields__", "__init__", "__post_init__"])
@pytest.mark.parametrize("kind", [Command, Event, ReadModel, Refusal])
def test_a_field_cannot_have_a_name_between_double_underscores(kind: type[Any], name: str) -> None:
    keywords = {"key": "thing_id"} if kind is ReadModel else {}
    with pytest.raises(DefinitionError, match=f"^Thing.{name}: "):
        message(kind, "Thing", [name], **keywords)


@pytest.mark.parametrize("name", ["key", "name", "version", "indexes", "model_key", "links"])
def test_a_link_may_have_the_name_of_a_class_keyword(name: str) -> None:
    class Other(ReadModel, key="thing_id"):
        thing_id: UUID

    make: Any = type(ReadModel)
    model = make(
        "Pointing",
        (ReadModel,),
        {"__annotations__": {"thing_id": UUID}, "__module__": __name__, name: Link(Other, by="thing_id")},
        key="thing_id",
    )

    def fold(row: Any, event: Recorded[Made]) -> Any:
        return None

    view: View[Any] = View(model, fold)
    assert (view.key.names, view.name, list(view.links)) == (("thing_id",), "Pointing", [name])
