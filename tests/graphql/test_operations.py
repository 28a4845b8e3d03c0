"""The bank through GraphQL: every mutation with every member of its result union, and every kind of read."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from graphql import GraphQLObjectType, GraphQLUnionType, build_schema, get_named_type, is_leaf_type
from msgspec.structs import replace
from tests.support.positions import number, text
from tests.support.waiting import until

from bank.accounts.feature import accounts
from bank.transfers.feature import transfers
from bank.users.feature import users
from headwater import App, Command, Feature, View
from headwater.commands.dispatcher import Accepted, Dispatcher
from headwater.config import Settings
from headwater.errors import OutcomeUnknown, Unavailable
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope, Serving
from headwater.live.feed import Feed
from headwater.projections.reader import Reader
from headwater.server.node import Node
from headwater.server.web import Web

Start: TypeAlias = Callable[..., Awaitable[Node]]

QUICK = replace(Settings(), poll_seconds=0.5, at_least_seconds=5)

APPENDER_WAITS = """
select pid from pg_stat_activity
where application_name = 'headwater appender' and datname = current_database() and wait_event_type = 'Lock'
"""

app = App([users, accounts, Feature(deciders=transfers.deciders, views=transfers.views)])
"""The bank without the saga of transfers, so that only the commands of a test append events."""


SCHEMA = build_schema(app.schema.as_str())


def leaves(kind: GraphQLObjectType) -> str:
    """Return a selection of all fields of a type that need no selection set."""
    return " ".join(name for name, field in kind.fields.items() if is_leaf_type(get_named_type(field.type)))


def members(mutation: str) -> dict[str, GraphQLObjectType]:
    """Return the members of a mutation's result union, by name."""
    root = SCHEMA.mutation_type
    assert root is not None
    union = get_named_type(root.fields[mutation].type)
    assert isinstance(union, GraphQLUnionType)
    return {each.name: each for each in union.types}


def written(mutation: str) -> str:
    """Return a document with the mutation that selects every field of each member of its result union."""
    parts = []
    for name, kind in members(mutation).items():
        rows = [
            f"{field} {{ {leaves(inner)} }}"
            for field, inner in ((field, get_named_type(each.type)) for field, each in kind.fields.items())
            if isinstance(inner, GraphQLObjectType)
        ]
        parts.append(f"... on {name} {{ {leaves(kind)} {' '.join(rows)} }}")
    name = mutation[0].upper() + mutation[1:]
    return (
        f"mutation ($input: {name}Input!, $expectedVersion: Int, $commandId: UUID) {{ {mutation}(input: $input, "
        f"expectedVersion: $expectedVersion, commandId: $commandId) {{ __typename {' '.join(parts)} }} }}"
    )


class Api:
    """A client of a node."""

    def __init__(self, node: Node, serving: Serving | None = None) -> None:
        self.node = node
        self.serving = serving or node.serving
        self._engine = Engine(node.app.schema)

    async def ask(self, query: str, **variables: object) -> Any:
        """Return the data of an operation. Raises AssertionError if it has errors."""
        result = await self._engine.execute(GraphQLRequest(query, variables=variables), Scope(self.serving))
        assert not result.errors, result.errors
        return result.data

    async def fail(self, query: str, **variables: object) -> list[tuple[str, str]]:
        """Return code and message of each error."""
        result = await self._engine.execute(GraphQLRequest(query, variables=variables), Scope(self.serving))
        return [(error["extensions"]["code"], error["message"]) for error in result.errors]

    async def do(
        self, mutation: str, given: dict[str, Any], *, version: int | None = None, command: UUID | None = None
    ) -> dict[str, Any]:
        """Run a mutation, and return all fields of its result."""
        variables: dict[str, Any] = {"input": given}
        if version is not None:
            variables["expectedVersion"] = version
        if command is not None:
            variables["commandId"] = str(command)
        data = await self.ask(written(mutation), **variables)
        return data[mutation]  # type: ignore[no-any-return]  # the answer's fields

    async def done(self, mutation: str, **given: str) -> dict[str, Any]:
        """Run a mutation that must be accepted, and return all fields of its result."""
        answer = await self.do(mutation, given)
        assert answer["__typename"].endswith("Accepted"), answer
        return answer


@pytest.fixture
async def api(start: Start) -> Api:
    return Api(await start(app, settings=QUICK))


@pytest.fixture
async def world(api: Api) -> dict[str, str]:
    """Register Ada and Bob, and open accounts of Ada: with 10.00, empty, frozen and closed. Return the ids by name."""
    ids = {name: str(uuid4()) for name in ("ada", "bob", "full", "empty", "frozen", "closed", "sent", "nobody")}
    for name in ("ada", "bob"):
        await api.done("registerUser", userId=ids[name], email=f"{name}@example.com", name=name.title())
    for name in ("full", "empty", "frozen", "closed"):
        await api.done("openAccount", accountId=ids[name], ownerId=ids["ada"], currency="EUR")
    await api.done("deposit", accountId=ids["full"], amount="10.00")
    await api.done("freezeAccount", accountId=ids["frozen"])
    await api.done("closeAccount", accountId=ids["closed"])
    await api.done(
        "requestTransfer", transferId=ids["sent"], fromAccountId=ids["full"], toAccountId=ids["empty"], amount="5"
    )
    return ids


# Mutations ---------------------------------------------------------------------------------------------------------

EXISTS = {"code": "ALREADY_EXISTS", "message": "There already is something with this id."}
TAKEN = {"code": "EMAIL_TAKEN", "message": "Another user has this e-mail address."}


def invalid(path: str, message: str) -> dict[str, Any]:
    return {"code": "INVALID_INPUT", "message": message, "path": [path]}


def conflict(expected: int, actual: int) -> dict[str, Any]:
    message = "The stream has changed since the version that was expected."
    return {"code": "VERSION_CONFLICT", "message": message, "expectedVersion": expected, "actualVersion": actual}


def not_open(status: str) -> dict[str, Any]:
    return {"code": "ACCOUNT_NOT_OPEN", "message": "The account is frozen or closed.", "status": status}


NOT_EMPTY = "Only an empty account can be closed. Money on its way out counts until it has arrived: it may come back."
NO_ACCOUNT = {"code": "ACCOUNT_NOT_FOUND", "message": "There is no such account.", "accountId": "nobody"}
NO_MONEY = "Expected at most 2 decimal places"
TO_EMPTY = {"toAccountId": "empty", "amount": "1"}

# mutation -> (input, expected version, refusal, its facts). A name of `world` stands for the id.
REFUSALS: dict[str, list[tuple[dict[str, str], int | None, str, dict[str, Any]]]] = {
    "registerUser": [
        ({"email": "ADA@example.com", "name": "x"}, None, "EmailTaken", TAKEN | {"email": "ADA@example.com"}),
        ({"userId": "ada", "email": "new@example.com", "name": "x"}, None, "AlreadyExists", EXISTS),
        ({"userId": "full", "email": "new@example.com", "name": "x"}, None, "InvalidInput", {"path": ["userId"]}),
        ({"email": "no address", "name": "x"}, None, "InvalidInput", {"path": ["email"]}),
        ({"email": "new@example.com", "name": "\0"}, None, "InvalidInput", {"path": ["name"]}),
        ({"email": "new@example.com", "name": " "}, None, "InvalidInput", {"path": ["name"]}),
        ({"email": "new@example.com", "name": "x"}, 5, "VersionConflict", conflict(5, 0)),
    ],
    "changeEmail": [
        (
            {"userId": "nobody", "email": "new@example.com"},
            None,
            "UserNotFound",
            {"code": "USER_NOT_FOUND", "message": "There is no such user.", "userId": "nobody"},
        ),
        ({"userId": "ada", "email": "Bob@Example.com"}, None, "EmailTaken", TAKEN | {"email": "Bob@Example.com"}),
        ({"userId": "ada", "email": "@"}, None, "InvalidInput", {"path": ["email"]}),
        ({"userId": "ada", "email": "new@example.com"}, 0, "VersionConflict", conflict(0, 1)),
    ],
    "openAccount": [
        ({"accountId": "full", "ownerId": "ada", "currency": "EUR"}, None, "AlreadyExists", EXISTS),
        ({"ownerId": "ada", "currency": "eur"}, None, "InvalidInput", {"path": ["currency"]}),
        ({"accountId": "full", "ownerId": "ada", "currency": "EUR"}, 7, "VersionConflict", conflict(7, 2)),
    ],
    "deposit": [
        ({"accountId": "nobody", "amount": "1"}, None, "AccountNotFound", NO_ACCOUNT),
        ({"accountId": "frozen", "amount": "1"}, None, "AccountNotOpen", not_open("FROZEN")),
        ({"accountId": "closed", "amount": "1"}, None, "AccountNotOpen", not_open("CLOSED")),
        ({"accountId": "full", "amount": "0"}, None, "InvalidInput", invalid("amount", "Expected more than 0")),
        ({"accountId": "full", "amount": "1.001"}, None, "InvalidInput", invalid("amount", NO_MONEY)),
        ({"accountId": "full", "amount": "1"}, 1, "VersionConflict", conflict(1, 2)),
    ],
    "withdraw": [
        ({"accountId": "nobody", "amount": "1"}, None, "AccountNotFound", NO_ACCOUNT),
        ({"accountId": "frozen", "amount": "1"}, None, "AccountNotOpen", not_open("FROZEN")),
        (
            {"accountId": "full", "amount": "10.01"},
            None,
            "InsufficientFunds",
            {"code": "INSUFFICIENT_FUNDS", "message": "The account does not hold that much.", "balance": "10.00"},
        ),
        ({"accountId": "full", "amount": "-1"}, None, "InvalidInput", invalid("amount", "Expected more than 0")),
        ({"accountId": "full", "amount": "1"}, 3, "VersionConflict", conflict(3, 2)),
    ],
    "freezeAccount": [
        ({"accountId": "nobody"}, None, "AccountNotFound", NO_ACCOUNT),
        ({"accountId": "frozen"}, None, "AccountNotOpen", not_open("FROZEN")),
        ({"accountId": "ada"}, None, "InvalidInput", {"path": ["accountId"]}),
        ({"accountId": "full"}, 1, "VersionConflict", conflict(1, 2)),
    ],
    "unfreezeAccount": [
        ({"accountId": "nobody"}, None, "AccountNotFound", NO_ACCOUNT),
        ({"accountId": "closed"}, None, "AccountNotOpen", not_open("CLOSED")),
        ({"accountId": "ada"}, None, "InvalidInput", {"path": ["accountId"]}),
        ({"accountId": "frozen"}, 1, "VersionConflict", conflict(1, 2)),
    ],
    "closeAccount": [
        ({"accountId": "nobody"}, None, "AccountNotFound", NO_ACCOUNT),
        ({"accountId": "frozen"}, None, "AccountNotOpen", not_open("FROZEN")),
        (
            {"accountId": "full"},
            None,
            "AccountNotEmpty",
            {"code": "ACCOUNT_NOT_EMPTY", "message": NOT_EMPTY, "balance": "10.00"},
        ),
        ({"accountId": "ada"}, None, "InvalidInput", {"path": ["accountId"]}),
        ({"accountId": "empty"}, 9, "VersionConflict", conflict(9, 1)),
    ],
    "requestTransfer": [
        ({"transferId": "sent", **TO_EMPTY, "fromAccountId": "full"}, None, "AlreadyExists", EXISTS),
        ({**TO_EMPTY, "fromAccountId": "nobody"}, None, "AccountNotFound", NO_ACCOUNT),
        (
            {**TO_EMPTY, "fromAccountId": "empty"},
            None,
            "SameAccount",
            {"code": "SAME_ACCOUNT", "message": "A transfer goes from one account to another."},
        ),
        ({"transferId": "ada", **TO_EMPTY, "fromAccountId": "full"}, None, "InvalidInput", {"path": ["transferId"]}),
        ({**TO_EMPTY, "fromAccountId": "ada"}, None, "InvalidInput", {"path": ["fromAccountId"]}),
        ({**TO_EMPTY, "fromAccountId": "full", "amount": "0"}, None, "InvalidInput", {"path": ["amount"]}),
        ({"transferId": "sent", **TO_EMPTY, "fromAccountId": "full"}, 0, "VersionConflict", conflict(0, 1)),
    ],
}


@pytest.mark.parametrize("mutation", REFUSALS)
async def test_refusals_are_data_with_their_facts(api: Api, world: dict[str, str], mutation: str) -> None:
    head = await api.node.log.head()
    for given, version, refusal, facts in REFUSALS[mutation]:
        answer = await api.do(
            mutation, {name: world.get(value, value) for name, value in given.items()}, version=version
        )
        expected = {name: world.get(value, value) if isinstance(value, str) else value for name, value in facts.items()}
        assert answer["__typename"] == refusal, answer
        if refusal == "InvalidInput":
            assert (answer["code"], bool(answer["message"])) == ("INVALID_INPUT", True)
            assert answer.items() >= expected.items()
        else:
            assert answer == {"__typename": refusal, **expected}
    assert {refusal for _, _, refusal, _ in REFUSALS[mutation]} == {
        name for name in members(mutation) if not name.endswith("Accepted")
    }, "every one that the union has"
    assert await api.node.log.head() == head


ACCEPTED: dict[str, tuple[dict[str, str], int, dict[str, Any]]] = {
    "registerUser": (
        {"email": "new@example.com", "name": "Ünal 😀"},
        0,
        {"email": "new@example.com", "name": "Ünal 😀"},
    ),
    "changeEmail": ({"userId": "ada", "email": "new@example.com"}, 1, {"email": "new@example.com", "name": "Ada"}),
    "openAccount": (
        {"ownerId": "bob", "currency": "USD"},
        0,
        {"ownerId": "bob", "currency": "USD", "status": "OPEN", "balance": "0", "entryCount": 0},
    ),
    "deposit": ({"accountId": "full", "amount": "0.5"}, 2, {"balance": "10.50", "entryCount": 2, "status": "OPEN"}),
    "withdraw": ({"accountId": "full", "amount": "10.00"}, 2, {"balance": "0.00", "entryCount": 2}),
    "freezeAccount": ({"accountId": "full"}, 2, {"status": "FROZEN", "balance": "10.00"}),
    "unfreezeAccount": ({"accountId": "frozen"}, 2, {"status": "OPEN", "balance": "0"}),
    "closeAccount": ({"accountId": "empty"}, 1, {"status": "CLOSED"}),
    "requestTransfer": (
        {"fromAccountId": "full", "toAccountId": "nobody", "amount": "99"},
        0,
        {"fromAccountId": "full", "toAccountId": "nobody", "amount": "99", "currency": "EUR", "status": "REQUESTED"},
    ),
}


def test_every_mutation_is_covered_by_these_tests() -> None:
    root = SCHEMA.mutation_type
    assert root is not None
    assert ACCEPTED.keys() == REFUSALS.keys() == root.fields.keys()


@pytest.mark.parametrize("mutation", ACCEPTED)
async def test_an_accepted_mutation_returns_the_row_that_it_wrote(
    api: Api, world: dict[str, str], mutation: str
) -> None:
    words, version, row = ACCEPTED[mutation]
    head, command = await api.node.log.head(), uuid4()
    given = {name: world.get(value, value) for name, value in words.items()}
    answer = await api.do(mutation, given, version=version, command=command)
    (shown,) = [answer.pop(name) for name in ("user", "account", "transfer") if name in answer]
    stream = answer["streamId"]
    assert answer == {
        "__typename": mutation[0].upper() + mutation[1:] + "Accepted",
        "commandId": str(command),
        "streamId": given.get("accountId") or given.get("userId") or stream,
        "version": version + 1,
        "position": text(api.node, head + 1),
    }
    assert shown.items() >= {name: world.get(value, value) for name, value in row.items()}.items()
    assert (shown["id"], shown["position"]) == (stream, text(api.node, head + 1))

    again = await api.do(mutation, given, version=version, command=command)
    assert again.items() >= answer.items(), "the same command again returns the same result"
    assert await api.node.log.head() == head + 1, "and appends no second event"


async def test_a_command_that_would_now_be_refused_keeps_its_first_answer(api: Api, world: dict[str, str]) -> None:
    command, given = uuid4(), {"accountId": world["full"], "amount": "6"}
    first = await api.do("withdraw", given, command=command)
    assert first["__typename"] == "WithdrawAccepted"
    assert (await api.do("withdraw", given))["__typename"] == "InsufficientFunds"
    assert await api.do("withdraw", given, command=command) == first


async def test_concurrent_requests_with_one_command_id_append_once(api: Api, world: dict[str, str]) -> None:
    command, head = uuid4(), await api.node.log.head()
    given = {"email": "new@example.com", "name": "New"}
    registered = await asyncio.gather(*(api.do("registerUser", given, command=command) for _ in range(5)))
    assert len({(each["__typename"], each["streamId"], each["position"]) for each in registered}) == 1
    assert await api.node.log.head() == head + 1


async def test_a_command_id_belongs_to_one_stream(api: Api, world: dict[str, str]) -> None:
    command = str(uuid4())
    await api.do("deposit", {"accountId": world["full"], "amount": "1"}, command=UUID(command))
    errors = await api.fail(written("deposit"), input={"accountId": world["empty"], "amount": "1"}, commandId=command)
    assert [code for code, _ in errors] == ["COMMAND_ID_REUSED"]


@dataclass
class LosesAnswers:
    """Executes commands, and reports that their outcome is unknown."""

    dispatcher: Dispatcher
    done: list[Accepted]

    async def execute(
        self, command: Command, *, command_id: UUID | None = None, expected_version: int | None = None
    ) -> Accepted:
        self.done.append(
            await self.dispatcher.execute(command, command_id=command_id, expected_version=expected_version)
        )
        raise OutcomeUnknown(OutcomeUnknown.__doc__)


class LogIsAway:
    """Executes no command."""

    async def execute(
        self, command: Command, *, command_id: UUID | None = None, expected_version: int | None = None
    ) -> Accepted:
        raise Unavailable(Unavailable.__doc__)


async def test_a_command_whose_outcome_is_unknown_can_be_sent_again_by_the_id_that_the_error_has(api: Api) -> None:
    losing = LosesAnswers(api.node.dispatcher, [])
    variables: dict[str, Any] = {"input": {"email": "new@example.com", "name": "New"}}
    request = GraphQLRequest(written("registerUser"), variables=variables)
    serving = dataclasses.replace(api.node.serving, dispatcher=losing)
    (error,) = (await Engine(app.schema).execute(request, Scope(serving))).errors
    command, (done,) = error["extensions"].pop("commandId"), losing.done
    assert error["extensions"] == {"code": "OUTCOME_UNKNOWN"}
    assert command == str(done.command_id)

    head = await api.node.log.head()
    again = await api.ask(written("registerUser"), **variables, commandId=command)
    assert again["registerUser"].items() >= {"commandId": command, "streamId": str(done.stream_id)}.items()
    assert await api.node.log.head() == head


async def test_an_error_of_a_command_has_the_id_that_the_client_gave_it(api: Api) -> None:
    serving, command = dataclasses.replace(api.node.serving, dispatcher=LogIsAway()), str(uuid4())
    variables = {"input": {"email": "new@example.com", "name": "New"}, "commandId": command}
    request = GraphQLRequest(written("registerUser"), variables=variables)
    (error,) = (await Engine(app.schema).execute(request, Scope(serving))).errors
    assert (error["message"], error["extensions"]) == (
        "The log cannot be reached; nothing was written. Try again later.",
        {"code": "UNAVAILABLE", "commandId": command},
    )


async def test_too_many_commands_at_once_are_refused_and_can_be_sent_again(
    start: Start, connection: asyncpg.Connection
) -> None:
    node = await start(app, settings=replace(QUICK, append_queue=1))
    api, account, command = Api(node), str(uuid4()), str(uuid4())
    await api.done("openAccount", accountId=account, ownerId=str(uuid4()), currency="EUR")
    await api.done("deposit", accountId=account, amount="10")
    variables: dict[str, Any] = {"input": {"accountId": account, "amount": "4"}, "commandId": command}
    web = httpx.AsyncClient(transport=httpx.ASGITransport(Web(node).app), base_url="http://test")
    async with web, connection.transaction():
        await connection.execute("select from headwater.head for update")
        first = asyncio.create_task(api.done("withdraw", accountId=account, amount="3"))
        await until(lambda: node.database.pool.fetchval(APPENDER_WAITS))
        second = asyncio.create_task(api.done("withdraw", accountId=account, amount="3"))
        await until(lambda: node.appender.waiting)
        refused = await web.post("/graphql", json={"query": written("withdraw"), "variables": variables})
        assert not first.done()
    assert (refused.status_code, refused.headers["content-type"]) == (200, "application/json; charset=utf-8")
    (error,) = refused.json()["errors"]
    assert (error["message"], error["path"], error["extensions"]) == (
        "The queue of commands is full (1 are waiting); nothing was written. Try again later.",
        ["withdraw"],
        {"code": "OVERLOADED", "commandId": command},
    )
    assert refused.json()["data"] is None
    await asyncio.gather(first, second)
    assert await node.log.head() == 4

    again = await api.ask(written("withdraw"), **variables)

    assert again["withdraw"].items() >= {"commandId": command, "position": text(node, 5)}.items()
    assert again["withdraw"]["account"]["balance"] == "0"


async def test_a_stream_created_without_an_id_gets_a_time_ordered_one(api: Api) -> None:
    made = [await api.done("openAccount", ownerId=str(uuid4()), currency="EUR") for _ in range(3)]
    ids = [(UUID(each["commandId"]), UUID(each["streamId"])) for each in made]
    assert len({*sum(ids, ())}) == 6
    for command, stream in ids:
        assert (stream.version, stream.int >> 80) == (7, command.int >> 80)


async def test_a_command_that_changes_nothing_is_accepted(api: Api, world: dict[str, str]) -> None:
    head, command = await api.node.log.head(), uuid4()
    answer = await api.do("unfreezeAccount", {"accountId": world["full"]}, version=2, command=command)
    unchanged = ("UnfreezeAccountAccepted", 2, text(api.node, head))
    assert (answer["__typename"], answer["version"], answer["position"]) == unchanged
    assert answer["account"]["status"] == "OPEN"
    again = await api.do("unfreezeAccount", {"accountId": world["full"]}, version=2, command=command)
    assert (again, await api.node.log.head()) == (answer, head)


NO_DECIMALS = [
    1.5,
    1e3,
    True,
    "1e3",
    "NaN",
    "Infinity",
    "-Infinity",
    "",
    " 1",
    "1,5",
    "0x1",
    "\u0661.\u0665",
    "1_000",
    [],
    {},
    "9" * 61,
]


async def test_a_decimal_variable_is_a_string_or_a_whole_number(api: Api) -> None:
    for amount in NO_DECIMALS:
        errors = await api.fail(written("deposit"), input={"accountId": str(uuid4()), "amount": amount})
        assert [(code, "amount" in message) for code, message in errors] == [("BAD_USER_INPUT", True)], amount


NO_DECIMALS_EITHER = ["1.5", "1e3", '"1e3"', '"NaN"', "true", "[1]", "ONE"]


async def test_a_decimal_literal_is_a_string_or_a_whole_number(api: Api) -> None:
    for amount in NO_DECIMALS_EITHER:
        query = f'mutation {{ deposit(input: {{accountId: "{uuid4()}", amount: {amount}}}) {{ __typename }} }}'
        assert [code for code, _ in await api.fail(query)] == ["GRAPHQL_VALIDATION_FAILED"], amount


@pytest.mark.parametrize(("amount", "balance"), [(5, "15.00"), ("5.0", "15.00"), ("+5", "15.00"), (".5", "10.50")])
async def test_decimals_are_stored_and_returned_exactly(
    api: Api, world: dict[str, str], amount: object, balance: str
) -> None:
    answer = await api.do("deposit", {"accountId": world["full"], "amount": amount})
    assert answer["account"]["balance"] == balance


# Rows by key -------------------------------------------------------------------------------------------------------


async def test_a_row_is_found_by_its_key(api: Api, world: dict[str, str]) -> None:
    query = """query ($ada: UUID!, $full: UUID!, $nobody: UUID!) {
      user(userId: $ada) { id userId email name registeredAt position }
      nobody: user(userId: $nobody) { id }
      account(accountId: $full) {
        id accountId ownerId owner { name } currency status balance entryCount openedAt updatedAt position
      }
      none: account(accountId: $ada) { id }
    }"""
    data = await api.ask(query, **{name: world[name] for name in ("ada", "full", "nobody")})
    times = [data["user"].pop("registeredAt"), data["account"].pop("openedAt"), data["account"].pop("updatedAt")]
    assert [datetime.fromisoformat(each).utcoffset() is not None and each[-1] for each in times] == ["Z", "Z", "Z"]
    assert sorted(times) == times
    ada, full = world["ada"], world["full"]
    assert data == {
        "user": {"id": ada, "userId": ada, "email": "ada@example.com", "name": "Ada", "position": text(api.node, 1)},
        "nobody": None,
        "account": {
            "id": full,
            "accountId": full,
            "ownerId": ada,
            "owner": {"name": "Ada"},
            "currency": "EUR",
            "status": "OPEN",
            "balance": "10.00",
            "entryCount": 1,
            "position": text(api.node, 7),
        },
        "none": None,
    }


async def test_node_finds_a_row_of_any_read_model_by_its_id(api: Api, world: dict[str, str]) -> None:
    query = "query ($id: ID!) { node(id: $id) { __typename id ... on User { email } ... on Account { balance } } }"
    found = {name: (await api.ask(query, id=world[name]))["node"] for name in ("ada", "full", "nobody")}
    assert found == {
        "ada": {"__typename": "User", "id": world["ada"], "email": "ada@example.com"},
        "full": {"__typename": "Account", "id": world["full"], "balance": "10.00"},
        "nobody": None,
    }
    assert await api.fail(query, id="full") == [("BAD_USER_INPUT", "An id is a UUID.")]


async def test_a_read_with_at_least_waits_for_that_position(start: Start, api: Api, world: dict[str, str]) -> None:
    alone = Api(await start(app, settings=replace(QUICK, at_least_seconds=20), work=False))
    query = """query ($id: UUID!, $after: Position!) {
      account(accountId: $id, atLeast: $after) { balance }
      accounts(filter: {accountId: {eq: $id}}, atLeast: $after) { nodes { balance } position }
    }"""
    data, position = None, ""
    for _ in range(5):
        deposited = await alone.ask(
            'mutation ($id: UUID!) { deposit(input: {accountId: $id, amount: "1"}) { ... on Accepted { position } } }',
            id=world["full"],
        )
        position = deposited["deposit"]["position"]
        data = await alone.ask(query, id=world["full"], after=position)
    assert data == {
        "account": {"balance": "15.00"},
        "accounts": {"nodes": [{"balance": "15.00"}], "position": position},
    }


async def test_a_read_of_a_position_that_is_not_reached_in_time_is_an_error(start: Start) -> None:
    api = Api(await start(app, settings=replace(QUICK, at_least_seconds=0.05, poll_seconds=0.02)))
    behind = [("PROJECTION_BEHIND", "User has reached position 0, not 9, in 0.05 s; ask again.")]
    assert await api.fail('query ($id: UUID!) { user(userId: $id, atLeast: "9") { id } }', id=str(uuid4())) == behind
    assert await api.fail('{ users(atLeast: "9") { position } }') == behind


@asynccontextmanager
async def held_back(connection: asyncpg.Connection, projection: str) -> AsyncIterator[None]:
    """Lock the checkpoint of a projection, so that it cannot commit."""
    async with connection.transaction():
        await connection.execute("select from headwater.projections where name = $1 for update", projection)
        yield


@dataclass
class Waited:
    """The positions that readers waited for. by_user: set when the reader of `User` waits."""

    positions: dict[str, list[int]]
    by_user: asyncio.Event


class RecordingReader(Reader):
    """Records the positions that it waits for."""

    def __init__(self, node: Node, view: View[Any], waited: Waited) -> None:
        super().__init__(
            node.database.pool, view, node.positions, patience=QUICK.at_least_seconds, poll=QUICK.poll_seconds
        )
        self._waited = waited

    async def reach(self, position: int) -> None:
        self._waited.positions[self.view.name].append(position)
        if self.view.name == "User":
            self._waited.by_user.set()
        await super().reach(position)


@pytest.fixture
def waited(api: Api) -> Waited:
    """Let the client read through readers that record what they wait for."""
    node, waited = api.node, Waited(defaultdict(list), asyncio.Event())
    readers = {view.model: RecordingReader(node, view, waited) for view in node.app.domain.views}
    feeds = {model: Feed(reader, node.positions) for model, reader in readers.items()}
    api.serving = dataclasses.replace(node.serving, feeds=feeds)
    return waited


async def waits_for_users(answer: asyncio.Task[Any], waited: Waited) -> None:
    """Assert that the response waits while the projection of `User` is behind."""
    async with asyncio.timeout(10):
        await asyncio.wait([answer, asyncio.create_task(waited.by_user.wait())], return_when=asyncio.FIRST_COMPLETED)
    assert not answer.done(), answer.result()


async def test_linked_rows_of_a_mutation_have_reached_its_position(
    api: Api, connection: asyncpg.Connection, waited: Waited
) -> None:
    user = str(uuid4())
    query = """mutation ($user: UUID!) {
      registerUser(input: {userId: $user, email: "a@example.com", name: "Ada"}) { __typename }
      openAccount(input: {ownerId: $user, currency: "EUR"}) {
        ... on OpenAccountAccepted { position account { owner { name } } }
      }
    }"""
    async with held_back(connection, "User"):
        answer = asyncio.create_task(api.ask(query, user=user))
        await waits_for_users(answer, waited)
    assert (await answer)["openAccount"] == {"position": text(api.node, 2), "account": {"owner": {"name": "Ada"}}}
    assert waited.positions == {"Account": [2], "User": [2]}


@pytest.mark.parametrize(
    "read",
    [
        "account(accountId: $account, atLeast: $after) { owner { email } }",
        "accounts(atLeast: $after) { nodes { owner { email } } edges { node { owner { email } } } }",
        "transfers(atLeast: $after) { nodes { fromAccount { owner { email } } } }",
    ],
    ids=["one", "list", "over two links"],
)
async def test_linked_rows_of_a_read_with_at_least_have_reached_that_position(
    api: Api, connection: asyncpg.Connection, waited: Waited, world: dict[str, str], read: str
) -> None:
    waited.positions.clear()
    waited.by_user.clear()
    async with held_back(connection, "User"):
        change = """mutation ($user: UUID!) {
          changeEmail(input: {userId: $user, email: "new@example.com"}) { ... on Accepted { position } }
        }"""
        position = (await api.ask(change, user=world["ada"]))["changeEmail"]["position"]
        variables = {"after": position} | ({"account": world["full"]} if "$account" in read else {})
        declared = "$after: Position!" + (", $account: UUID!" if "$account" in read else "")
        answer = asyncio.create_task(api.ask(f"query ({declared}) {{ {read} }}", **variables))
        await waits_for_users(answer, waited)
    found = json.dumps(await answer)
    assert "new@example.com" in found
    assert "ada@example.com" not in found
    assert waited.positions["User"] == [number(position)], "once for all rows of a level"


# Lists -------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def many(api: Api) -> list[str]:
    """Open twelve accounts of three owners, one of them not registered. The nth account has balance n."""
    owners = [str(uuid4()) for _ in range(3)]
    for place, owner in enumerate(owners[:2]):
        await api.done("registerUser", userId=owner, email=f"{place}@example.com", name=f"Owner {place}")
    ids = []
    for n in range(1, 13):
        opened = await api.done("openAccount", ownerId=owners[n % 3], currency="EUR" if n % 2 else "USD")
        ids.append(opened["streamId"])
        await api.done("deposit", accountId=ids[-1], amount=str(n))
    return ids


@pytest.fixture
async def reading(start: Start, many: list[str]) -> Api:
    """A client of a node without a worker, so that only its answers use the pool."""
    alone = Api(await start(app, settings=QUICK, work=False))
    await alone.ask("{ accounts { nodes { owner { id } } } }")  # the first read of a table also reads its columns
    return alone


async def test_linked_rows_of_one_level_are_read_in_one_statement(reading: Api) -> None:
    query = "{ accounts(orderBy: [BALANCE_ASC]) { nodes { owner { name } } edges { node { owner { id } } } } }"
    assert len([statement for statement in await statements_of(reading, query) if '"user"' in statement]) == 1
    data = await reading.ask(query)
    names = [node["owner"] and node["owner"]["name"] for node in data["accounts"]["nodes"]]
    assert names == ["Owner 1", None, "Owner 0"] * 4


async def test_the_number_of_statements_does_not_depend_on_the_number_of_rows(reading: Api) -> None:
    query = "query ($first: Int) { accounts(first: $first) { nodes { owner { name } } totalCount } }"
    assert [len(await statements_of(reading, query, first=first)) for first in (1, 12)] == [
        4,  # the position, the page, the owners, the count
        4,
    ]


async def test_the_number_of_statements_does_not_depend_on_the_aliases_of_a_field(reading: Api) -> None:
    for field, of in (
        ("totalCount", "accounts(first: 2) { FIELDS }"),
        ("pageInfo { hasNextPage endCursor }", "accounts(first: 2) { FIELDS }"),
        ("pageInfo { hasPreviousPage hasNextPage }", 'events(last: 2, after: "2", before: "9") { FIELDS }'),
        ("owner { name }", "accounts(first: 2) { nodes { FIELDS } }"),
    ):
        once = await statements_of(reading, "{ " + of.replace("FIELDS", aliased(field, 1)) + " }")
        often = await statements_of(reading, "{ " + of.replace("FIELDS", aliased(field, 50)) + " }")
        assert len(often) == len(once), field


async def test_aliases_of_the_row_of_a_mutation_are_read_once(reading: Api, many: list[str]) -> None:
    mutation = 'mutation {{ deposit(input: {{ accountId: "{}", amount: "1" }}) {{ ... on DepositAccepted {{ {} }} }} }}'
    once, often = [
        [
            statement
            for statement in await statements_of(
                reading, mutation.format(many[0], aliased("account { balance }", times))
            )
            if '"account"' in statement
        ]
        for times in (1, 50)
    ]
    assert len(once) == len(often) == 1


def aliased(field: str, times: int) -> str:
    return " ".join(f"a{n}: {field}" for n in range(times))


async def statements_of(api: Api, query: str, **variables: object) -> list[str]:
    """Return the statements that the connections of the pool execute while the query is answered."""
    statements: list[str] = []

    def listen(record: Any) -> None:
        if re.search(r'\b(read|headwater)"?\.', record.query):  # not the driver's own
            statements.append(record.query)

    async with every_connection(api.node.database.pool) as connections:
        for each in connections:
            each.add_query_logger(listen)
    statements.clear()  # those of background tasks
    await api.ask(query, **variables)
    executed = list(statements)
    async with every_connection(api.node.database.pool) as connections:
        for each in connections:
            each.remove_query_logger(listen)
    return executed


@asynccontextmanager
async def every_connection(pool: asyncpg.Pool) -> AsyncIterator[list[Any]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(pool.acquire()) for _ in range(pool.get_max_size())]


CHOSEN: list[tuple[str, Sequence[int]]] = [
    ("{}", range(1, 13)),
    ("null", range(1, 13)),
    ('{balance: {gt: "3", lte: "5.00"}}', [4, 5]),
    ('{balance: {in: ["1.0", 12, "99"]}}', [1, 12]),
    ('{balance: {notIn: ["1", "2", "3"]}, currency: {eq: "USD"}}', [4, 6, 8, 10, 12]),
    ('{currency: {ne: "USD"}, balance: {lt: "4"}}', [1, 3]),
    ('{currency: {startsWith: "E", contains: "UR"}, balance: {gte: "11"}}', [11]),
    ('{or: [{balance: {eq: "2"}}, {balance: {eq: "7"}}]}', [2, 7]),
    ('{and: [{balance: {gt: "2"}}, {balance: {lt: "5"}}], not: {balance: {eq: "3"}}}', [4]),
    ("{status: {eq: OPEN}, entryCount: {eq: 1}}", range(1, 13)),
    ("{status: {in: [FROZEN, CLOSED]}}", []),
    ("{or: []}", []),
    ("{and: []}", range(1, 13)),
    ("{balance: {isNull: true}}", []),
    ('{openedAt: {gt: "2026-01-01T00:00:00+01:00"}, balance: {eq: "9"}}', [9]),
]


async def test_a_filter_selects_the_rows_that_match(api: Api, many: list[str]) -> None:
    for where, chosen in CHOSEN:
        query = f"{{ accounts(filter: {where}, orderBy: [BALANCE_ASC]) {{ totalCount nodes {{ balance }} }} }}"
        data = await api.ask(query)
        assert [int(node["balance"]) for node in data["accounts"]["nodes"]] == list(chosen), where
        assert data["accounts"]["totalCount"] == len(chosen), where


TOO_WIDE = "A filter may have 200 parts: comparisons, and members of and, or and not."
NULL = "is null. Leave it out, or use isNull."


REFUSED_FILTERS: list[tuple[object, str]] = [
    ({"balance": None}, f"filter: balance {NULL}"),
    ({"accountId": None}, f"filter: accountId {NULL}"),
    ({"and": [{"or": [{"ownerId": None}]}]}, f"filter: ownerId {NULL}"),
    ({"balance": {"eq": None}}, f"filter: balance.eq {NULL}"),
    ({"ownerId": {"notIn": None}}, f"filter: ownerId.notIn {NULL}"),
    ({"and": None}, f"filter: and {NULL}"),
    ({"not": None}, f"filter: not {NULL}"),
    ({"or": [{"not": {"status": {"isNull": None}}}]}, f"filter: status.isNull {NULL}"),
    ({"currency": {"in": ["x"] * 1001}}, "The lists of a filter may hold 1000 values together."),
    (
        {"or": [{"currency": {"in": ["x"] * 600}}, {"currency": {"notIn": ["x"] * 600}}]},
        "The lists of a filter may hold 1000 values together.",
    ),
    ({"and": [{"balance": {"gt": "1"}}] * 101}, TOO_WIDE),
    ({"or": [{"not": {}}] * 101}, TOO_WIDE),
    ({"or": [{}] * 201}, TOO_WIDE),
    ({"and": [{"or": [{}] * 20}] * 10}, TOO_WIDE),
    ({"currency": {"eq": "\0"}}, "The filter or the cursor holds a value that no row can have."),
    ({"currency": {"in": ["EUR", "\0"]}}, "The filter or the cursor holds a value that no row can have."),
]


async def test_an_invalid_filter_is_refused(api: Api) -> None:
    query = "query ($where: AccountFilter) { accounts(filter: $where) { totalCount } }"
    for where, message in REFUSED_FILTERS:
        assert await api.fail(query, where=where) == [("BAD_USER_INPUT", message)], where


async def test_the_widest_allowed_filter_is_answered(api: Api, many: list[str]) -> None:
    query = "query ($where: AccountFilter) { accounts(filter: $where) { totalCount } }"
    wide: dict[str, Any] = {"or": [{"balance": {"eq": str(n)}} for n in range(100)]}
    assert await api.ask(query, where=wide) == {"accounts": {"totalCount": 12}}
    assert await api.ask(query, where={"currency": {"in": ["EUR"] * 1000}}) == {"accounts": {"totalCount": 6}}


async def test_a_filter_that_is_too_deep_is_refused(api: Api) -> None:
    query = "query ($where: AccountFilter) { accounts(filter: $where) { totalCount } }"
    where: dict[str, Any] = {}
    for _ in range(8):
        where = {"not": where}
    assert await api.ask(query, where=where) == {"accounts": {"totalCount": 0}}
    assert await api.fail(query, where={"not": where}) == [("BAD_USER_INPUT", "A filter may be nested 8 deep.")]


NO_TIMES = ["2026-01-31T12:00:00", "2026-01-31", "noon", "", 5, True, "2026-13-01T00:00:00Z"]


async def test_a_time_without_an_offset_is_refused(api: Api) -> None:
    query = "query ($time: DateTime) { accounts(filter: {openedAt: {gt: $time}}) { totalCount } }"
    for time in NO_TIMES:
        errors = await api.fail(query, time=time)
        assert [(code, "$time" in message) for code, message in errors] == [("BAD_USER_INPUT", True)], time


PAGE = """query ($first: Int, $after: String, $last: Int, $before: String, $order: [AccountOrder!]) {
  accounts(first: $first, after: $after, last: $last, before: $before, orderBy: $order) {
    edges { cursor node { balance } } nodes { balance } totalCount position
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}"""


async def test_pages_forward_and_backward_cover_all_rows_in_order(api: Api, many: list[str]) -> None:
    order, walked, cursor = ["CURRENCY_DESC", "BALANCE_ASC"], [], None
    whole = [2, 4, 6, 8, 10, 12, 1, 3, 5, 7, 9, 11]
    while True:
        page = (await api.ask(PAGE, first=5, order=order, **({"after": cursor} if cursor else {})))["accounts"]
        info, edges = page["pageInfo"], page["edges"]
        walked += [int(edge["node"]["balance"]) for edge in edges]
        assert [edge["node"] for edge in edges] == page["nodes"]
        assert (info["startCursor"], info["endCursor"]) == (edges[0]["cursor"], edges[-1]["cursor"])
        assert info["hasPreviousPage"] is (cursor is not None)
        assert (page["totalCount"], page["position"]) == (12, text(api.node, 26))
        cursor = info["endCursor"]
        if not info["hasNextPage"]:
            break
    assert walked == whole
    page = (await api.ask(PAGE, last=4, before=cursor, order=order))["accounts"]
    assert [int(node["balance"]) for node in page["nodes"]] == whole[-5:-1]
    assert (page["pageInfo"]["hasNextPage"], page["pageInfo"]["hasPreviousPage"]) == (True, True)
    page = (await api.ask(PAGE, last=3, order=order))["accounts"]
    assert [int(node["balance"]) for node in page["nodes"]] == whole[-3:]
    assert await api.fail(PAGE, first=5, after=cursor, order=["BALANCE_ASC"]) == [
        ("BAD_USER_INPUT", "The cursor does not belong to this order; start again without it.")
    ]


async def test_an_empty_page_has_no_cursors_and_no_neighbours(api: Api) -> None:
    info = {"hasNextPage": False, "hasPreviousPage": False, "startCursor": None, "endCursor": None}
    empty = {"edges": [], "nodes": [], "totalCount": 0, "position": "0", "pageInfo": info}
    assert await api.ask(PAGE) == {"accounts": empty}


REFUSED_PAGES: list[tuple[dict[str, object], str]] = [
    ({"first": 4}, "A page has 0 to 3 rows, not 4."),
    ({"last": 4}, "A page has 0 to 3 rows, not 4."),
    ({"first": -1}, "A page has 0 to 3 rows, not -1."),
    ({"first": 1, "last": 1}, "Give first or last, not both."),
    ({"before": "x"}, "Use before together with last."),
    ({"first": 1, "before": "x"}, "Use before together with last."),
    ({"after": "x"}, "The cursor does not belong to this order; start again without it."),
    ({"order": ["BALANCE_ASC", "CURRENCY_ASC", "BALANCE_ASC"]}, "orderBy names balance twice."),
    ({"order": ["OPENED_AT_ASC", "OPENED_AT_DESC"]}, "orderBy names openedAt twice."),
    ({"order": ["BALANCE_ASC"] * 5_000}, "orderBy names balance twice."),
]


async def test_a_page_size_out_of_bounds_is_refused(start: Start) -> None:
    api = Api(await start(app, settings=replace(QUICK, default_page=2, max_page=3)))
    for arguments, message in REFUSED_PAGES:
        assert await api.fail(PAGE, **arguments) == [("BAD_USER_INPUT", message)], arguments


async def test_a_page_without_a_size_has_the_default_size(start: Start, api: Api, many: list[str]) -> None:
    small = Api(await start(app, settings=replace(QUICK, default_page=2, max_page=3), work=False))
    for arguments, size in (({}, 2), ({"first": 3}, 3), ({"first": 0}, 0), ({"first": None}, 2)):
        page = (await small.ask(PAGE, **arguments))["accounts"]
        assert (len(page["nodes"]), page["totalCount"], page["pageInfo"]["hasNextPage"]) == (size, 12, True)


async def test_changes_after_the_position_of_a_list_follow_it_without_a_gap(api: Api, many: list[str]) -> None:
    position = (await api.ask("{ accounts { position } }"))["accounts"]["position"]
    assert position == text(api.node, await api.node.log.head())
    engine, scope = Engine(api.node.app.schema), Scope(api.node.serving)
    query = "subscription ($after: Position) { accountChanges(after: $after) { reset upserted { id balance } } }"
    source: Any = await engine.subscribe(GraphQLRequest(query, variables={"after": position}), scope)
    waiting = asyncio.ensure_future(anext(source))
    await api.done("deposit", accountId=many[0], amount="1")
    result = await asyncio.wait_for(waiting, 10)
    assert result.data == {"accountChanges": {"reset": False, "upserted": [{"id": many[0], "balance": "2"}]}}
    await source.aclose()
