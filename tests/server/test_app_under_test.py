"""The fixture `headwater_app`: a client of GraphQL, a clock that the test advances, and `settle()`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from bank.accounts.domain import Deposit, OpenAccount
from bank.accounts.views import AccountView
from bank.transfers.domain import RequestTransfer, TransferStatus
from bank.transfers.views import TransferView
from headwater import Accepted, App, AppUnderTest, Command, Decider, Event, Feature, GraphQLFailed, Schedule
from headwater.server.app_under_test import under_test


async def opened(app: AppUnderTest, balance: int = 0) -> UUID:
    account = uuid4()
    await app.execute(OpenAccount(account_id=account, owner_id=uuid4(), currency="EUR"))
    if balance:
        assert isinstance(await app.execute(Deposit(account_id=account, amount=Decimal(balance))), Accepted)
    return account


async def test_settling_waits_for_rows_and_for_every_step_of_a_saga(headwater_app: AppUnderTest) -> None:
    source, target, transfer = await opened(headwater_app, 10), await opened(headwater_app), uuid4()
    await headwater_app.execute(
        RequestTransfer(transfer_id=transfer, from_account_id=source, to_account_id=target, amount=Decimal(7))
    )
    await headwater_app.settle()
    row, account = await headwater_app.get(TransferView, transfer), await headwater_app.get(AccountView, target)
    assert row is not None
    assert account is not None
    assert (row.status, account.balance) == (TransferStatus.COMPLETED, Decimal(7))


async def test_the_client_queries_mutates_and_subscribes(headwater_app: AppUnderTest) -> None:
    client, account = headwater_app.client, await opened(headwater_app)
    await headwater_app.settle()
    changes = client.subscribe("subscription { accountChanges { upserted { balance } } }")
    assert len((await anext(changes))["accountChanges"]["upserted"]) == 1

    done = await client.mutate("deposit", {"accountId": str(account), "amount": "5"})
    assert done == {"__typename": "DepositAccepted"}
    refused = await client.mutate(
        "withdraw", {"accountId": str(account), "amount": "7"}, "... on InsufficientFunds { code }"
    )
    assert refused == {"__typename": "InsufficientFunds", "code": "INSUFFICIENT_FUNDS"}
    assert len((await anext(changes))["accountChanges"]["upserted"]) == 1

    await headwater_app.settle()
    found = await client.query("query ($id: UUID!) { account(accountId: $id) { entryCount } }", id=str(account))
    assert found == {"account": {"entryCount": 1}}


async def test_errors_of_an_operation_are_raised_with_their_codes(headwater_app: AppUnderTest) -> None:
    with pytest.raises(GraphQLFailed, match="GRAPHQL_VALIDATION_FAILED: Cannot query field 'nothing'"):
        await headwater_app.client.query("{ nothing }")
    with pytest.raises(GraphQLFailed, match="the document is no subscription"):
        await anext(headwater_app.client.subscribe("{ __typename }"))


BELL = UUID(int=1)


class Ring(Command):
    bell_id: UUID
    due: datetime


class Rung(Event):
    due: datetime


def ring(command: Ring, state: None) -> Rung:
    return Rung(due=command.due)


def rung(state: None, event: Rung) -> None:
    return None


hourly = Schedule("ring", lambda due: Ring(bell_id=BELL, due=due), every=timedelta(hours=1))
bells = App([Feature([Decider("bell", "bell_id", None, ring, rung)], schedules=[hourly])])


async def test_advancing_the_clock_fires_what_is_due(dsn: str) -> None:
    async with under_test(bells, dsn) as app:
        await app.settle()
        assert [event async for event in app.events(Rung)] == []
        await app.advance(timedelta(hours=1))
        await app.advance(timedelta(hours=1))
        due = [event.data.due async for event in app.events(Rung)]
        assert due == [datetime(2026, 1, 1, hour, tzinfo=UTC) for hour in (1, 2)]


async def test_what_never_settles_is_named(dsn: str) -> None:
    async with under_test(bells, dsn) as app:
        await app._node.leases.__aexit__(None, None, None)  # nobody runs the schedule any more
        await app.clock.advance(timedelta(hours=1))
        with pytest.raises(AssertionError, match=r"not settled within 0\.2 s: the schedule ring is left"):
            await app.settle(0.2)
