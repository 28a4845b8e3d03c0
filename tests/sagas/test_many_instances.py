"""One event may begin many instances: a cancelled conference refunds each order, and each refund goes its own way."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import asyncpg
from tests.support.executing import accepted
from tests.support.waiting import until
from tests.support.works import Work, weather, works

from headwater import App, Command, Decider, Do, Done, Event, Feature, Recorded, Saga
from headwater.domain.failure_policy import Retry
from headwater.testing import given

CONFERENCE, FIRST, SECOND, BROKEN = (UUID(int=number) for number in range(1, 5))


class CancelConference(Command):
    conference_id: UUID
    order_ids: list[UUID]


class ConferenceCancelled(Event):
    order_ids: list[UUID]


def cancel(command: CancelConference, state: None) -> ConferenceCancelled:
    return ConferenceCancelled(order_ids=command.order_ids)


def evolve(state: None, event: ConferenceCancelled) -> None:
    return None


conferences = Decider("conference", key="conference_id", initial=None, decide=cancel, evolve=evolve)


def orders(event: Recorded[ConferenceCancelled]) -> list[UUID]:
    return event.data.order_ids


def refund(known: UUID | None, event: ConferenceCancelled, key: UUID) -> list[Do[Work] | Done]:
    assert known == key
    if key == BROKEN and not weather.forgiving:
        raise RuntimeError("a bug in the refund of one order")
    return [Do(Work(work_id=key, name="refund")), Done()]


def remember(known: UUID | None, event: ConferenceCancelled, key: UUID) -> UUID:
    return key


refunds = Saga(
    "Refunds",
    route=orders,
    initial=None,
    react=refund,
    evolve=remember,
    starts=[ConferenceCancelled],
    on_failure=Retry(times=1, first=0.001),
)
app = App([Feature(deciders=[conferences, works], sagas=[refunds])])


async def test_an_event_begins_an_instance_for_each_of_its_keys_and_a_failing_one_holds_up_no_other(
    start: Any, connection: asyncpg.Connection
) -> None:
    async def done(*keys: UUID) -> bool:
        rows = await connection.fetch("select key from headwater.sagas where saga = 'Refunds' and status = 'done'")
        return {row["key"] for row in rows} == set(keys)

    async def aside() -> list[tuple[str, int]]:
        letters = "select key, position from headwater.dead_letters where next_attempt_at is null"
        return [tuple(each) for each in await connection.fetch(letters)]

    node = await start(app)
    await accepted(node, CancelConference(conference_id=CONFERENCE, order_ids=[FIRST, BROKEN, SECOND, FIRST]))
    await until(lambda: done(FIRST, SECOND))
    await until(aside)
    assert await aside() == [(str(BROKEN), 1)]
    refunded = "select stream_id from headwater.events where type = 'Worked' order by position"
    assert {row["stream_id"] for row in await connection.fetch(refunded)} == {FIRST, SECOND}

    weather.forgiving = True
    await connection.execute("update headwater.dead_letters set next_attempt_at = now()")
    await connection.execute("select pg_notify('headwater', '')")
    await until(lambda: done(FIRST, SECOND, BROKEN))
    assert len(await connection.fetch(refunded)) == 3


def test_the_key_of_an_instance_is_given() -> None:
    cancelled = ConferenceCancelled(order_ids=[FIRST, SECOND])
    followed = given(refunds, key=SECOND).when(cancelled)
    followed.then([Work(work_id=SECOND, name="refund"), Done()])
    followed.remembers(SECOND)
