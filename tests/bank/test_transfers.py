"""Transfers as clients see them: requested by a mutation, followed by a subscription, through every possible end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest
from tests.support.executing import accepted
from tests.support.positions import number
from tests.support.waiting import until

from bank.accounts.domain import (
    AccountNotEmpty,
    CloseAccount,
    Deposit,
    FreezeAccount,
    OpenAccount,
    ReceiveTransfer,
    UnfreezeAccount,
    Withdraw,
)
from headwater.clock import VirtualClock
from headwater.domain.messages import Command
from headwater.errors import Unavailable
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.result import Result
from headwater.graphql.scope import Scope
from headwater.ids import new_id
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]

REQUEST = """
mutation ($input: RequestTransferInput!, $commandId: UUID) {
  requestTransfer(input: $input, commandId: $commandId) {
    __typename
    ... on RequestTransferAccepted { position transfer { id status amount currency fromAccount { accountId } } }
    ... on Refusal { code message }
  }
}
"""
WATCH = "subscription ($id: UUID!) { transfer(transferId: $id) { status reason position } }"
BALANCE = "query ($id: UUID!) { account(accountId: $id) { balance entryCount } }"
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


class Customer:
    """A GraphQL client of a node of the bank."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._engine = Engine(node.app.schema)

    async def ask(self, query: str, **variables: object) -> Any:
        result = await self._engine.execute(GraphQLRequest(query, variables=variables), Scope(self.node.serving))
        assert not result.errors, result.errors
        return result.data

    async def account(self, amount: str = "100.00", *, currency: str = "EUR") -> UUID:
        account = new_id()
        await self.do(OpenAccount(account_id=account, owner_id=new_id(), currency=currency))
        if Decimal(amount):
            await self.do(Deposit(account_id=account, amount=Decimal(amount)))
        return account

    async def do(self, command: Command) -> None:
        await accepted(self.node, command)

    async def request(self, source: UUID, target: UUID, amount: str = "30.00", **variables: object) -> Any:
        given = {"fromAccountId": str(source), "toAccountId": str(target), "amount": amount, **variables}
        return (await self.ask(REQUEST, input=given))["requestTransfer"]

    async def transfer(self, source: UUID, target: UUID, amount: str = "30.00") -> list[dict[str, Any]]:
        """Request a transfer, subscribed before it exists. Returns the rows received until it ended."""
        transfer = new_id()
        watches: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        watching = asyncio.create_task(self._watch(transfer, watches))
        await watches
        accepted = await self.request(source, target, amount, transferId=str(transfer))
        assert accepted["__typename"] == "RequestTransferAccepted", accepted
        return await watching

    async def _watch(self, transfer: UUID, watches: asyncio.Future[None]) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = []
        async with asyncio.timeout(15), aclosing(self.rows(transfer)) as rows:
            async for row in rows:
                if row is None:
                    watches.set_result(None)  # subscribed, and the transfer does not exist yet
                    continue
                seen.append(row)
                if row["status"] in ("COMPLETED", "REFUSED", "REFUNDED"):
                    break
        return seen

    async def rows(self, transfer: UUID) -> AsyncGenerator[dict[str, Any] | None, None]:
        """Yield the transfer now and after each change; None while it does not exist."""
        request = GraphQLRequest(WATCH, variables={"id": str(transfer)})
        source = await self._engine.subscribe(request, Scope(self.node.serving))
        assert not isinstance(source, Result), source
        async with aclosing(source) as results:
            async for result in results:
                assert not result.errors, result.errors
                yield result.data["transfer"]  # type: ignore[index]  # a result without errors has data

    async def balance(self, account: UUID, *, entries: int) -> str:
        """Return the balance once the row has at least so many entries."""

        async def balance() -> str | None:
            row = (await self.ask(BALANCE, id=str(account)))["account"]
            return row["balance"] if row is not None and row["entryCount"] >= entries else None

        return str(await until(balance))


@pytest.fixture
async def customer(start: Start) -> Customer:
    return Customer(await start())


def ended(seen: list[dict[str, Any]]) -> tuple[str, str | None]:
    """Return the final status and reason; check that statuses and positions only advance and do not repeat."""
    order = ["REQUESTED", "WITHDRAWN", "COMPLETED", "REFUSED", "REFUNDED"]
    statuses = [order.index(row["status"]) for row in seen]
    assert statuses == sorted(set(statuses)), seen
    positions = [number(row["position"]) for row in seen]
    assert positions == sorted(set(positions)), seen
    return seen[-1]["status"], seen[-1]["reason"]


async def test_a_transfer_moves_money_from_the_source_to_the_target(customer: Customer) -> None:
    source, target = await customer.account(), await customer.account("1.00")
    assert ended(await customer.transfer(source, target)) == ("COMPLETED", None)
    assert await customer.balance(source, entries=2) == "70.00"
    assert await customer.balance(target, entries=2) == "31.00"


TRAIL = """
query ($of: UUID!) {
  events(filter: { correlationId: $of }) { nodes { type actor eventId commandId correlationId causationId } }
}
"""


async def test_the_audit_trail_links_each_event_of_a_transfer_to_its_cause(
    customer: Customer, connection: asyncpg.Connection
) -> None:
    source, target = await customer.account(), await customer.account()
    transfer, request = new_id(), str(new_id())
    given = {"fromAccountId": str(source), "toAccountId": str(target), "amount": "30.00", "transferId": str(transfer)}
    await customer.ask(REQUEST, input=given, commandId=request)
    await until(lambda: is_done(connection, transfer))

    events = (await customer.ask(TRAIL, of=request))["events"]["nodes"]

    known = {each["eventId"]: f"event {each['type']}" for each in events}
    known |= {each["commandId"]: f"command of {each['type']}" for each in events}
    assert len(known) == 2 * len(events), "each event has an event id and a command id of its own"
    assert [(each["type"], known.get(each["causationId"])) for each in events] == [
        ("TransferRequested", None),
        ("SagaHandledEvent", "event TransferRequested"),
        ("TransferSent", "command of SagaHandledEvent"),
        ("SagaStepConfirmed", "command of TransferSent"),
        ("TransferWithdrawn", "command of SagaHandledEvent"),
        ("SagaStepConfirmed", "command of TransferWithdrawn"),
        ("TransferReceived", "command of SagaHandledEvent"),
        ("SagaStepConfirmed", "command of TransferReceived"),
        ("TransferSettled", "command of SagaHandledEvent"),
        ("SagaStepConfirmed", "command of TransferSettled"),
        ("TransferCompleted", "command of SagaHandledEvent"),
        ("SagaStepConfirmed", "command of TransferCompleted"),
    ]
    first, *others = events
    assert (first["commandId"], first["actor"], first["causationId"]) == (request, None, None)
    assert {each["correlationId"] for each in events} == {request}
    assert {each["actor"] for each in others} == {"saga Transfer"}


async def test_a_subscriber_receives_each_status_of_a_transfer(customer: Customer) -> None:
    """The target is delayed until the client has received WITHDRAWN, since a slow client may get the latest only."""
    source, target = await customer.account(), await customer.account()
    holding: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    hold_up(customer.node, ReceiveTransfer, until=holding)
    transfer = new_id()
    watches: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    seen: list[str] = []

    async def look() -> None:
        async with aclosing(customer.rows(transfer)) as rows:
            async for row in rows:
                if row is None:
                    watches.set_result(None)
                    continue
                seen.append(row["status"])
                if row["status"] == "WITHDRAWN":
                    holding.set_result(None)
                if row["status"] == "COMPLETED":
                    return

    async with asyncio.timeout(15), asyncio.TaskGroup() as group:
        group.create_task(look())
        await watches
        await customer.request(source, target, transferId=str(transfer))
    assert seen in (["REQUESTED", "WITHDRAWN", "COMPLETED"], ["WITHDRAWN", "COMPLETED"])


async def test_a_transfer_without_sufficient_funds_is_refused(customer: Customer) -> None:
    source, target = await customer.account("10.00"), await customer.account()
    assert ended(await customer.transfer(source, target)) == ("REFUSED", "INSUFFICIENT_FUNDS")
    assert await customer.balance(source, entries=1) == "10.00"


async def test_a_transfer_from_a_frozen_account_is_refused(customer: Customer) -> None:
    source, target = await customer.account(), await customer.account()
    await customer.do(FreezeAccount(account_id=source))
    assert ended(await customer.transfer(source, target)) == ("REFUSED", "ACCOUNT_NOT_OPEN")


@pytest.mark.parametrize("target_is", ["frozen", "closed", "missing", "of another currency"])
async def test_a_transfer_that_the_target_cannot_receive_is_refunded(customer: Customer, target_is: str) -> None:
    source = await customer.account()
    target = await a_target(customer, target_is)
    reason = {
        "frozen": "ACCOUNT_NOT_OPEN",
        "closed": "ACCOUNT_NOT_OPEN",
        "missing": "ACCOUNT_NOT_FOUND",
        "of another currency": "CURRENCY_MISMATCH",
    }[target_is]
    assert ended(await customer.transfer(source, target)) == ("REFUNDED", reason)
    assert await customer.balance(source, entries=3) == "100.00"


async def a_target(customer: Customer, target_is: str) -> UUID:
    if target_is == "missing":
        return new_id()
    target = await customer.account("0", currency="CHF" if target_is == "of another currency" else "EUR")
    if target_is == "frozen":
        await customer.do(FreezeAccount(account_id=target))
    if target_is == "closed":
        await customer.do(CloseAccount(account_id=target))
    return target


async def test_a_transfer_is_refunded_to_a_source_that_was_frozen_meanwhile(customer: Customer) -> None:
    source, target = await customer.account(), await customer.account()
    holding: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    hold_up(customer.node, ReceiveTransfer, until=holding)
    transferring = asyncio.create_task(customer.transfer(source, target))
    await customer.balance(source, entries=2)
    await customer.do(FreezeAccount(account_id=source))
    await customer.do(FreezeAccount(account_id=target))
    holding.set_result(None)
    assert ended(await transferring) == ("REFUNDED", "ACCOUNT_NOT_OPEN")
    assert await customer.balance(source, entries=3) == "100.00"


@pytest.mark.parametrize("target_is", ["frozen", "closed", "missing", "of another currency"])
async def test_an_account_cannot_be_closed_while_its_transfer_may_be_refunded(
    customer: Customer, target_is: str
) -> None:
    source, target = await customer.account("30.00"), await a_target(customer, target_is)
    holding: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    hold_up(customer.node, ReceiveTransfer, until=holding)
    transferring = asyncio.create_task(customer.transfer(source, target))
    await customer.balance(source, entries=2)
    await cannot_be_closed(customer, source, "30.00")
    holding.set_result(None)
    assert ended(await transferring)[0] == "REFUNDED"
    assert await customer.balance(source, entries=3) == "30.00"
    await customer.do(Withdraw(account_id=source, amount=Decimal("30.00")))
    await customer.do(CloseAccount(account_id=source))


async def test_an_account_cannot_be_closed_while_its_transfer_may_time_out(start: Start) -> None:
    clock = VirtualClock(NOON)
    customer = Customer(await start(clock=clock))
    source, target = await customer.account("30.00"), await customer.account()
    hold_up(customer.node, ReceiveTransfer)
    transferring = asyncio.create_task(customer.transfer(source, target))
    await customer.balance(source, entries=2)
    await cannot_be_closed(customer, source, "30.00")
    await clock.advance(timedelta(seconds=31))
    assert ended(await transferring) == ("REFUNDED", "TIMED_OUT")
    assert await customer.balance(source, entries=3) == "30.00"


async def test_an_account_can_be_closed_as_soon_as_its_transfer_shows_completed(customer: Customer) -> None:
    """Also if the account was frozen when the money arrived."""
    source, target = await customer.account("30.00"), await customer.account()
    holding: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    hold_up(customer.node, ReceiveTransfer, until=holding)
    transferring = asyncio.create_task(customer.transfer(source, target))
    await customer.balance(source, entries=2)
    await customer.do(FreezeAccount(account_id=source))
    holding.set_result(None)
    assert ended(await transferring) == ("COMPLETED", None)
    await customer.do(UnfreezeAccount(account_id=source))
    await customer.do(CloseAccount(account_id=source))


async def cannot_be_closed(customer: Customer, account: UUID, balance: str) -> None:
    answer = await customer.node.dispatcher.execute(CloseAccount(account_id=account))
    assert answer == AccountNotEmpty(balance=Decimal(balance))


async def is_done(connection: asyncpg.Connection, transfer: UUID) -> bool:
    status = "select status from headwater.sagas where key = $1"
    return bool(await connection.fetchval(status, transfer) == "done")


async def test_a_transfer_whose_target_does_not_answer_within_its_timeout_is_refunded(start: Start) -> None:
    clock = VirtualClock(NOON)
    customer = Customer(await start(clock=clock))
    source, target = await customer.account(), await customer.account()
    asked = hold_up(customer.node, ReceiveTransfer)
    transferring = asyncio.create_task(customer.transfer(source, target))
    await asyncio.wait_for(asked.wait(), 20)
    await clock.advance(timedelta(seconds=29))
    assert not transferring.done()
    await clock.advance(timedelta(seconds=2))
    assert ended(await transferring) == ("REFUNDED", "TIMED_OUT")
    assert await customer.balance(source, entries=3) == "100.00"
    assert await customer.balance(target, entries=1) == "100.00"


async def test_a_request_repeated_under_one_command_id_is_one_transfer(
    customer: Customer, connection: asyncpg.Connection
) -> None:
    source, target = await customer.account(), await customer.account()
    key = str(new_id())
    given = {"fromAccountId": str(source), "toAccountId": str(target), "amount": "30.00"}
    first, second = [(await customer.ask(REQUEST, input=given, commandId=key))["requestTransfer"] for _ in range(2)]
    assert first["transfer"]["id"] == second["transfer"]["id"]
    assert await customer.balance(source, entries=2) == "70.00"
    assert await connection.fetchval("select count(*) from headwater.events where type = 'TransferRequested'") == 1


async def test_invalid_requests_are_refused_and_start_no_transfer(customer: Customer) -> None:
    account = await customer.account()
    assert (await customer.request(account, account))["code"] == "SAME_ACCOUNT"
    assert (await customer.request(new_id(), account))["code"] == "ACCOUNT_NOT_FOUND"
    assert (await customer.request(account, new_id(), "-1"))["code"] == "INVALID_INPUT"


async def test_a_concurrent_withdrawal_and_transfer_both_succeed_if_the_balance_covers_them(customer: Customer) -> None:
    source, target = await customer.account(), await customer.account()
    seen, _ = await asyncio.gather(
        customer.transfer(source, target, "80.00"), customer.do(Withdraw(account_id=source, amount=Decimal(20)))
    )
    assert ended(seen) == ("COMPLETED", None)
    assert await customer.balance(source, entries=3) == "0.00"


def hold_up(node: Node, kind: type[Command], *, until: asyncio.Future[None] | None = None) -> asyncio.Event:
    """Delay the saga's commands of a type until the future is done; without one, they never get an answer.

    Returns an event that is set by the first such command.
    """
    issue, asked = node.dispatcher.issue, asyncio.Event()

    async def slow(command: Command, **options: Any) -> Any:
        if isinstance(command, kind):
            asked.set()
            if until is None:
                raise Unavailable("the log does not answer")
            await asyncio.shield(until)
        return await issue(command, **options)

    node.dispatcher.issue = slow  # type: ignore[method-assign]  # stands for a slow account
    return asked
