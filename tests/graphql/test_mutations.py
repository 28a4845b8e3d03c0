"""Every mutation of the bank, with every member of its result union."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from msgspec.structs import replace
from tests.support.bank_api import QUICK, SCHEMA, Api, app, members, written
from tests.support.executing import accepted
from tests.support.positions import text
from tests.support.waiting import until

from headwater import Command, Refusal
from headwater.commands.dispatcher import Accepted, Dispatcher
from headwater.errors import OutcomeUnknown, Unavailable
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope
from headwater.server.node import Node
from headwater.server.web import Web

Start: TypeAlias = Callable[..., Awaitable[Node]]

APPENDER_WAITS = """
select pid from pg_stat_activity
where application_name = 'headwater appender' and datname = current_database() and wait_event_type = 'Lock'
"""

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


async def test_refusals_are_data_with_their_facts(api: Api, world: dict[str, str], subtests: pytest.Subtests) -> None:
    head = await api.node.log.head()
    for mutation in REFUSALS:
        with subtests.test(mutation):
            await refusals_are_data_with_their_facts(api, world, mutation)
    assert await api.node.log.head() == head


async def refusals_are_data_with_their_facts(api: Api, world: dict[str, str], mutation: str) -> None:
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
        "rowState": "CURRENT",
    }
    assert shown.items() >= {name: world.get(value, value) for name, value in row.items()}.items()
    assert (shown["id"].partition(":")[2], shown["position"]) == (stream, text(api.node, head + 1))

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
    ) -> Accepted | Refusal:
        self.done.append(await accepted(self, command, command_id=command_id, expected_version=expected_version))
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


async def test_decimals_are_stored_and_returned_exactly(api: Api, world: dict[str, str]) -> None:
    amounts: list[tuple[object, str]] = [(5, "15.00"), ("5.0", "20.00"), ("+5", "25.00"), (".5", "25.50")]
    for amount, balance in amounts:
        answer = await api.do("deposit", {"accountId": world["full"], "amount": amount})
        assert answer["account"]["balance"] == balance, amount
