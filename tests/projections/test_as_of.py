"""Rows as of the past: as of each position, a row is the fold of the events up to there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeAlias, assert_never
from uuid import UUID, uuid4

import asyncpg
import pytest
from tests.support.executing import accepted
from tests.support.folding import at_rest, folded, logged
from tests.support.positions import text
from tests.support.waiting import until

from bank.accounts.domain import Deposit, FreezeAccount, OpenAccount, UnfreezeAccount, Withdraw
from bank.accounts.views import AccountView, account_view
from bank.transfers.domain import RequestTransfer
from bank.transfers.views import TransferView, transfer_view
from bank.users.domain import ChangeEmail, RegisterUser
from bank.users.views import UserView
from headwater import App, Command, Decider, Event, Feature, Link, ReadModel, Recorded, Refusal, View
from headwater.domain.row_fold import RowMisplaced
from headwater.domain.row_route import RowRoutes
from headwater.errors import AsOfUnsupported, CodeFailed
from headwater.eventstore.log import Append, append
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope
from headwater.projections.history import PAGE, History
from headwater.projections.row_codec import writer_of
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]


# Things that come and go, in boxes that gather them ------------------------------------------------------------------


class Put(Command):
    thing_id: UUID
    box_id: UUID


class Drop(Command):
    thing_id: UUID


class ThingPut(Event):
    thing_id: UUID
    box_id: UUID


class ThingDropped(Event):
    thing_id: UUID


class Box(ReadModel, key="box_id"):
    """A row that gathers events of many streams."""

    box_id: UUID
    puts: int


class Thing(ReadModel, key="thing_id"):
    """The place of a thing, while it has one."""

    thing_id: UUID
    box_id: UUID
    puts: int

    box = Link(Box, by="box_id")


def decide(command: Put | Drop, state: None) -> list[ThingPut | ThingDropped]:
    match command:
        case Put():
            return [ThingPut(thing_id=command.thing_id, box_id=command.box_id)]
        case Drop():
            return [ThingDropped(thing_id=command.thing_id)]
        case _:
            assert_never(command)


def evolve(state: None, event: ThingPut | ThingDropped) -> None:
    return None


def fold_thing(row: Thing | None, event: Recorded[ThingPut | ThingDropped]) -> Thing | None:
    if isinstance(event.data, ThingDropped):
        return None
    return Thing(thing_id=event.data.thing_id, box_id=event.data.box_id, puts=(row.puts if row else 0) + 1)


def fold_box(row: Box | None, event: Recorded[ThingPut]) -> Box | None:
    return Box(box_id=event.data.box_id, puts=(row.puts if row else 0) + 1)


things = Decider(category="thing", key="thing_id", initial=None, decide=decide, evolve=evolve)
things_app = App([Feature([things], [View(Thing, fold_thing), View(Box, fold_box)])])


# A second, simple fold ----------------------------------------------------------------------------------------------

Past: TypeAlias = dict[Any, list[tuple[int, dict[str, Any] | None]]]


def pasts(view: View[Any], events: Sequence[Recorded[Any]]) -> Past:
    """Return each row after each event that changed it, with the position."""
    models: dict[Any, Any] = {}
    past: Past = {}
    routes = RowRoutes(view)
    for event in events:
        for key in routes.keys(event):
            before = models.get(key)
            models[key] = after = view.fold(before, event)
            if after is not before:
                past.setdefault(key, []).append((event.position, _stored(view, after, event.position)))
    return past


def _stored(view: View[Any], model: Any, position: int) -> dict[str, Any] | None:
    if model is None:
        return None
    return {each.name: writer_of(each)(getattr(model, each.name)) for each in view.fields} | {"position": position}


def at(past: Past, key: UUID, position: int) -> dict[str, Any] | None:
    """Return the row of a key after a position."""
    return next((row for changed, row in reversed(past.get(key, ())) if changed <= position), None)


async def check_every_position(node: Node, *, cannot: Collection[str] = ()) -> None:
    """Check each row of each read model as of each position from 0 to the log's head.

    cannot: the read models that refuse reads as of the past.
    """
    head = await node.log.head()
    events = await node.log.read(0, head, limit=head)
    for view in node.app.domain.views:
        history, past = node.serving.histories[view.model], pasts(view, events)
        if view.name in cannot:
            with pytest.raises(AsOfUnsupported):
                history.require()
            continue
        for key in (*past, uuid4()):
            for position in range(head + 1):
                assert await history.row(key, position) == at(past, key, position), (view.name, position)
        reader = node.serving.feeds[view.model].reader
        await reader.reach(head)
        stored: dict[Any, Any] = {**await reader.rows(list(past))}
        now = {key: await history.row(key, head) for key in past}
        assert {key: dict(row) for key, row in stored.items()} == {k: row for k, row in now.items() if row is not None}


async def execute(node: Node, commands: Sequence[Command]) -> None:
    """Execute many commands at a time, so that several share one moment. Some may be refused."""
    for some in range(0, len(commands), 10):
        batch = commands[some : some + 10]
        done = await asyncio.gather(*map(node.dispatcher.execute, batch), return_exceptions=True)
        assert all(not isinstance(each, BaseException) or isinstance(each, Refusal) for each in done), done


# As of a position ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_every_row_of_the_bank_can_be_read_as_of_each_position(
    start: Start, connection: asyncpg.Connection, seed: int
) -> None:
    node, chance = await start(), random.Random(seed)
    users, accounts = [uuid4() for _ in range(3)], [uuid4() for _ in range(4)]
    commands: list[Command] = [RegisterUser(user_id=user, email=f"{user}@example.org", name="Ada") for user in users]
    commands += [OpenAccount(account_id=each, owner_id=chance.choice(users), currency="EUR") for each in accounts]

    def anything() -> Command:
        account = chance.choice(accounts)
        return chance.choice(
            [
                Deposit(account_id=account, amount=Decimal(chance.randint(1, 100))),
                Withdraw(account_id=account, amount=Decimal(chance.randint(1, 100))),
                FreezeAccount(account_id=account),
                UnfreezeAccount(account_id=account),
                ChangeEmail(user_id=chance.choice(users), email=f"{chance.random()}@example.org"),
                request_transfer(account, chance.choice([each for each in accounts if each != account])),
            ]
        )

    await execute(node, commands + [anything() for _ in range(50)])
    await until(lambda: at_rest(connection))
    await check_every_position(node)


def request_transfer(source: UUID, target: UUID) -> RequestTransfer:
    return RequestTransfer(transfer_id=uuid4(), from_account_id=source, to_account_id=target, amount=Decimal("7.50"))


async def test_removed_and_recreated_rows_can_be_read_as_of_each_position(start: Start) -> None:
    node, chance = await start(things_app), random.Random(1)
    keys, boxes = [uuid4() for _ in range(3)], [uuid4() for _ in range(2)]
    commands: list[Command] = [
        Drop(thing_id=chance.choice(keys))
        if chance.random() < 0.4
        else Put(thing_id=chance.choice(keys), box_id=chance.choice(boxes))
        for _ in range(60)
    ]
    await execute(node, commands)
    await check_every_position(node, cannot=["Box"])


async def test_an_exception_of_a_fold_never_counts_as_a_fault_of_the_database(start: Start) -> None:
    def fold(row: Thing | None, event: Recorded[ThingPut]) -> Thing:
        raise TimeoutError("a bug")

    node, thing = await start(things_app), uuid4()
    await execute(node, [Put(thing_id=thing, box_id=thing)])
    with pytest.raises(CodeFailed, match=r"^TimeoutError: a bug$"):
        await History(node.app.domain, View(Thing, fold), node.log, node.database.pool).row(thing, 1)


async def test_a_fold_that_returns_a_row_of_another_key_fails(start: Start) -> None:
    def fold(row: Thing | None, event: Recorded[ThingPut]) -> Thing:
        return Thing(thing_id=event.data.box_id, box_id=event.data.box_id, puts=1)

    node, thing, box = await start(things_app), uuid4(), uuid4()
    await execute(node, [Put(thing_id=thing, box_id=box)])
    with pytest.raises(RowMisplaced, match=f"a row of Thing {box}, for an event that is routed to {thing}"):
        await History(node.app.domain, View(Thing, fold), node.log, node.database.pool).row(thing, 1)


async def test_reading_a_long_stream_yields_to_the_event_loop(start: Start, connection: asyncpg.Connection) -> None:
    node, thing, pages = await start(things_app), uuid4(), 20
    data = f'{{"thing_id":"{thing}","box_id":"{thing}"}}'
    command, events = uuid4(), [("ThingPut", 1, data)] * (PAGE * pages)
    await append(connection, [Append(command, thing, "thing", 0, events, command)])
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)  # counts the turns of another task

    other = asyncio.create_task(others())
    row = await node.serving.histories[Thing].row(thing, PAGE * pages - 1)
    other.cancel()
    assert row == {"thing_id": thing, "box_id": thing, "puts": PAGE * pages - 1, "position": PAGE * pages - 1}
    assert turns >= pages


# As of a time --------------------------------------------------------------------------------------------------------


async def test_a_time_selects_the_last_position_up_to_then(start: Start) -> None:
    node = await start(things_app)
    for size in (1, 7, 3, 12, 1):
        await execute(node, [Put(thing_id=uuid4(), box_id=uuid4()) for _ in range(size)])
    events = await node.log.read(0, await node.log.head())
    tick = timedelta(microseconds=1)
    moments = {each.recorded_at + shift for each in events for shift in (-tick, timedelta(), tick)}
    for moment in (*moments, datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)):
        upto = max((each.position for each in events if each.recorded_at <= moment), default=0)
        before = max((each.position for each in events if each.recorded_at < moment), default=0)
        assert await node.log.position_at(moment) == upto
        assert await node.log.position_at(moment, before=True) == before


async def test_a_time_in_an_empty_log_selects_position_0(start: Start) -> None:
    node = await start(things_app)
    assert await node.log.position_at(datetime.now(UTC)) == 0


# Over GraphQL -------------------------------------------------------------------------------------------------------

ACCOUNT = "query($id: UUID!, $asOf: AsOf) { account(accountId: $id, asOf: $asOf) { balance position owner { email } } }"
TRANSFER = """
query ($id: UUID!, $asOf: AsOf) {
  transfer(transferId: $id, asOf: $asOf) { status reason amount updatedAt position fromAccount { balance } }
}
"""
THING = "query($id: UUID!, $asOf: AsOf) { thing(thingId: $id, asOf: $asOf) { puts box { puts } } }"


async def ask(node: Node, query: str, **variables: Any) -> tuple[Any, list[tuple[Any, str]]]:
    """Return the data, and the path and code of each error."""
    result = await Engine(node.app.schema).execute(GraphQLRequest(query, variables=variables), Scope(node.serving))
    errors = [(list(error.get("path", [])), error["extensions"]["code"]) for error in result.errors]
    return result.data, errors


@pytest.fixture
async def bank(start: Start) -> tuple[Node, UUID, list[datetime]]:
    """A node, an account, and the times of four events: a user, her account, a deposit, a changed e-mail address."""
    node, user, account = await start(), uuid4(), uuid4()
    for command in (
        RegisterUser(user_id=user, email="old@example.org", name="Ada"),
        OpenAccount(account_id=account, owner_id=user, currency="EUR"),
        Deposit(account_id=account, amount=Decimal("7.50")),
        ChangeEmail(user_id=user, email="new@example.org"),
    ):
        await accepted(node, command)
    return node, account, [each.recorded_at for each in await node.log.read(0, 4)]


def account_row(node: Node, balance: str, position: int, email: str) -> dict[str, Any]:
    """Return the account as a client receives it. position: of its last change. email: of its owner."""
    return {"balance": balance, "position": text(node, position), "owner": {"email": email}}


def opened(node: Node) -> dict[str, Any]:
    return account_row(node, "0", 2, "old@example.org")


def paid_in(node: Node) -> dict[str, Any]:
    return account_row(node, "7.50", 3, "old@example.org")


def moved(node: Node) -> dict[str, Any]:
    return account_row(node, "7.50", 3, "new@example.org")


async def test_linked_rows_are_read_as_of_the_same_position(bank: tuple[Node, UUID, list[datetime]]) -> None:
    node, account, _ = bank
    for position, expected in enumerate([None, None, opened(node), paid_in(node), moved(node)]):
        answer = await ask(node, ACCOUNT, id=str(account), asOf={"position": str(position)})
        assert answer == ({"account": expected}, [])


async def test_aliases_of_a_link_fold_its_stream_once(
    bank: tuple[Node, UUID, list[datetime]], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, account, _ = bank
    folded: list[tuple[UUID, int]] = []
    row = History.row

    async def counted(self: History, key: UUID, position: int) -> Any:
        folded.append((key, position))
        return await row(self, key, position)

    monkeypatch.setattr(History, "row", counted)
    links = " ".join(f"a{n}: owner {{ email }}" for n in range(30))
    rows = " ".join(
        f'b{n}: account(accountId: $id, asOf: {{ position: "{3 + n % 2}" }}) {{ {links} }}' for n in range(6)
    )
    data, errors = await ask(node, f"query($id: UUID!) {{ {rows} }}", id=str(account))
    assert not errors
    assert [data[f"b{n}"]["a29"]["email"] for n in range(4)] == ["old@example.org", "new@example.org"] * 2
    assert len(folded) == len(set(folded)) == 4, "the account and its owner, at two positions"


async def test_a_row_can_be_read_as_of_a_time(bank: tuple[Node, UUID, list[datetime]]) -> None:
    node, account, times = bank
    for moment, expected in zip(times, [None, opened(node), paid_in(node), moved(node)], strict=True):
        answer = await ask(node, ACCOUNT, id=str(account), asOf={"time": moment.isoformat()})
        assert answer == ({"account": expected}, [])
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert await ask(node, ACCOUNT, id=str(account), asOf={"time": later}) == ({"account": moved(node)}, [])


async def test_as_of_null_reads_the_present(bank: tuple[Node, UUID, list[datetime]]) -> None:
    node, account, _ = bank
    for model in (AccountView, UserView):  # the present is read from the table, not from the history
        await node.serving.feeds[model].reader.reach(4)
    assert await ask(node, ACCOUNT, id=str(account), asOf=None) == ({"account": moved(node)}, [])


async def test_a_transfer_can_be_read_as_of_each_position_and_time(
    start: Start, connection: asyncpg.Connection
) -> None:
    """Several events may have the same time."""
    node, accounts = await start(), [uuid4(), uuid4()]
    for each in accounts:
        await accepted(node, OpenAccount(account_id=each, owner_id=uuid4(), currency="EUR"))
    await accepted(node, Deposit(account_id=accounts[0], amount=Decimal(10)))
    requests = [request_transfer(*accounts), request_transfer(accounts[1], uuid4()), request_transfer(*accounts)]
    for request in requests:
        await accepted(node, request)
        await until(lambda: at_rest(connection))
    log = await logged(connection, node.app.domain.codec)
    keys = [each.transfer_id for each in requests]
    assert [row["reason"] for row in as_shown(node, log, keys)] == [None, "ACCOUNT_NOT_FOUND", "INSUFFICIENT_FUNDS"]

    async def asked(**as_of: str) -> list[Any]:
        answers = [await ask(node, TRANSFER, id=str(key), asOf=as_of) for key in keys]
        assert all(not errors for _, errors in answers), answers
        return [data["transfer"] for data, _ in answers]

    for position in range(len(log) + 1):
        assert await asked(position=str(position)) == as_shown(node, log[:position], keys), position
    for moment in {each.recorded_at for each in log}:
        then = [each for each in log if each.recorded_at <= moment]
        assert await asked(time=moment.isoformat()) == as_shown(node, then, keys), moment


def as_shown(node: Node, log: Sequence[Recorded[Any]], keys: Sequence[UUID]) -> list[Any]:
    """Return transfers as a client should see them after these events."""
    transfers, accounts = folded(transfer_view, log), folded(account_view, log)

    def shown(key: UUID) -> Any:
        if key not in transfers:
            return None
        row, position = transfers[key]
        assert isinstance(row, TransferView)
        source, _ = accounts[row.from_account_id]
        assert isinstance(source, AccountView)
        return {
            "status": row.status.value,
            "reason": row.reason,
            "amount": str(row.amount),
            "updatedAt": row.updated_at.isoformat().replace("+00:00", "Z"),
            "position": text(node, position),
            "fromAccount": {"balance": str(source.balance)},
        }

    return [shown(key) for key in keys]


@pytest.mark.parametrize(
    "as_of",
    [{"position": "5"}, {"position": "1", "time": "2026-01-01T00:00:00Z"}, {}, {"position": None}, {"time": "x"}],
)
async def test_an_invalid_as_of_is_bad_user_input(
    bank: tuple[Node, UUID, list[datetime]], as_of: dict[str, Any]
) -> None:
    node, account, _ = bank
    data, errors = await ask(node, ACCOUNT, id=str(account), asOf=as_of)
    assert [code for _, code in errors] == ["BAD_USER_INPUT"]
    assert data in (None, {"account": None})


async def test_as_of_cannot_be_combined_with_at_least(bank: tuple[Node, UUID, list[datetime]]) -> None:
    node, account, _ = bank
    query = 'query($id: UUID!) { account(accountId: $id, atLeast: "1", asOf: { position: "1" }) { balance } }'
    assert await ask(node, query, id=str(account)) == ({"account": None}, [(["account"], "BAD_USER_INPUT")])


async def test_a_read_model_of_several_streams_refuses_reads_as_of_the_past(start: Start) -> None:
    node, thing, box = await start(things_app), uuid4(), uuid4()
    await execute(node, [Put(thing_id=thing, box_id=box)])
    query = "query($id: UUID!, $asOf: AsOf) { box(boxId: $id, asOf: $asOf) { puts } }"
    answer = await ask(node, query, id=str(box), asOf={"position": "1"})
    assert answer == ({"box": None}, [(["box"], "AS_OF_UNSUPPORTED")])
    # A link to it is an error of that field only.
    answer = await ask(node, THING, id=str(thing), asOf={"position": "1"})
    assert answer == ({"thing": {"puts": 1, "box": None}}, [(["thing", "box"], "AS_OF_UNSUPPORTED")])
