"""The doorbell: nodes hear a ring at once, and find changes without it by polling."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support.executing import accepted
from tests.support.proxy import Proxy
from tests.support.waiting import reached, until

from bank.accounts.domain import Deposit, OpenAccount
from bank.accounts.views import AccountView
from headwater.config import Settings
from headwater.errors import ProjectionBehind
from headwater.eventstore.audit_trail import Wanted
from headwater.eventstore.doorbell import PostgresBell
from headwater.eventstore.log import Log
from headwater.eventstore.positions import LOG, Positions
from headwater.live.subscriptions import Message, watch_changes
from headwater.projections.reader import Reader
from headwater.server.node import Node
from headwater.supervisor import backoff

Start: TypeAlias = Callable[..., Awaitable[Node]]

RUNG = replace(Settings(), poll_seconds=3600)
"""No node polls during a test."""


async def opened(node: Node) -> UUID:
    account = uuid4()
    await accepted(node, OpenAccount(account_id=account, owner_id=uuid4(), currency="EUR"))
    return account


async def deposit(node: Node, account: UUID) -> int:
    return (await accepted(node, Deposit(account_id=account, amount=Decimal(1)))).position


LISTENING = """
select count(*) from pg_stat_activity
 where application_name = 'headwater listener' and datname = current_database()
   and state = 'idle' and query like '%headwater.projections%'
"""


async def listening(connection: asyncpg.Connection, nodes: int) -> None:
    """Wait until the listeners of so many nodes listen: each has read the positions of the projections."""
    query = f"select ({LISTENING}) = $1"
    await until(lambda: connection.fetchval(query, nodes))


async def kill_listeners(connection: asyncpg.Connection) -> int:
    """Kill the connections of all listeners. Returns their number."""
    return int(
        await connection.fetchval(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity "
            "where application_name = 'headwater listener' and datname = current_database()"
        )
    )


class Subscriber:
    """A subscriber that keeps the number of entries of each account."""

    def __init__(self, node: Node) -> None:
        self._messages: AsyncGenerator[Message, None] = watch_changes(node.serving.feeds[AccountView])
        self.position = 0
        self.entries: dict[UUID, int] = {}

    async def reach(self, position: int, seconds: float = 15) -> None:
        """Read messages until the subscriber has reached a position."""
        async with asyncio.timeout(seconds):
            while self.position < position:
                message: Any = await anext(self._messages)
                self.position = message.position
                self.entries |= {row["account_id"]: row["entry_count"] for row in message.upserted}

    async def aclose(self) -> None:
        await self._messages.aclose()


@pytest.fixture
def pause() -> float:
    """The seconds before a listener connects again: long enough to be observed."""
    return 0.3


@pytest.fixture
async def nodes(start: Start, pause: float) -> tuple[Node, Node]:
    """A node that serves and one that works, as two processes."""
    options = {"settings": RUNG, "pause": lambda failures: pause}
    return await start(work=False, **options), await start(serve=False, **options)


# Heard -------------------------------------------------------------------------------------------------------------


async def test_nodes_hear_each_other_at_once(nodes: tuple[Node, Node], connection: asyncpg.Connection) -> None:
    serves, works = nodes
    async with aclosing(Subscriber(serves)) as subscriber:
        account, position = await opened(serves), 1
        for entries in range(1, 20):
            position = await deposit(serves, account)
            await subscriber.reach(position, seconds=5)
            assert subscriber.entries == {account: entries}
    assert works.positions.known(LOG) == serves.positions.known("Account") == position
    assert await kill_listeners(connection) == 2, "each process listens on one connection"


async def test_changes_during_the_reconnection_of_a_killed_listener_are_found(
    nodes: tuple[Node, Node], connection: asyncpg.Connection
) -> None:
    serves, _ = nodes
    account, entries = await opened(serves), 0
    await listening(connection, 2)
    async with aclosing(Subscriber(serves)) as subscriber:
        await subscriber.reach(1)
        for _ in range(3):
            assert await kill_listeners(connection) == 2
            for node in nodes:
                await until(lambda node=node: "listener" in node.supervisor.troubles)  # type: ignore[misc]  # early
            # Neither hears the ring of this deposit; both read the positions when they are connected again.
            position = await deposit(serves, account)
            assert all("listener" in node.supervisor.troubles for node in nodes)
            entries += 1
            await subscriber.reach(position)
            assert subscriber.entries == {account: entries}
            for node in nodes:
                await until(lambda node=node: not node.supervisor.troubles)  # type: ignore[misc]  # bound early


@pytest.mark.parametrize("pause", [0.01])
async def test_no_change_is_lost_while_listeners_are_killed(
    nodes: tuple[Node, Node], connection: asyncpg.Connection
) -> None:
    serves, _ = nodes
    accounts = [await opened(serves) for _ in range(5)]
    killed, position = 0, 0
    await listening(connection, 2)
    async with aclosing(Subscriber(serves)) as subscriber:
        for round_ in range(30):
            waiting = [asyncio.create_task(deposit(serves, account)) for account in accounts for _ in range(4)]
            if round_ % 3 == 0:
                killed += await kill_listeners(connection)
            position = max(await asyncio.gather(*waiting))
            if round_ % 2:
                await subscriber.reach(position)
        await subscriber.reach(position)
    assert subscriber.entries == dict.fromkeys(accounts, 30 * 4)
    assert killed > 10


# Not heard ---------------------------------------------------------------------------------------------------------


async def test_polling_finds_changes_whose_rings_were_not_heard(
    start: Start, connection: asyncpg.Connection, proxy: Proxy
) -> None:
    settings = replace(Settings(), poll_seconds=0.05, listen_url=proxy.dsn)
    serves, _ = await start(settings=settings, work=False), await start(settings=settings, serve=False)
    await listening(connection, 2)
    known, proxy.silent = serves.positions.known("Account"), True
    async with aclosing(Subscriber(serves)) as subscriber:
        account = await opened(serves)
        for entries in range(1, 6):
            await subscriber.reach(await deposit(serves, account))
            assert subscriber.entries == {account: entries}
    assert serves.positions.known("Account") == known
    assert proxy.ignored, "the doorbell rang"


async def test_without_ring_and_poll_no_change_is_found(
    start: Start, connection: asyncpg.Connection, proxy: Proxy
) -> None:
    """The control of the tests above: without a ring and a poll they fail."""
    settings = replace(RUNG, listen_url=proxy.dsn)
    serves, _ = await start(settings=settings, work=False), await start(settings=settings, serve=False)
    await listening(connection, 2)
    proxy.silent = True
    async with aclosing(Subscriber(serves)) as subscriber:
        await opened(serves)
        with pytest.raises(TimeoutError):
            await subscriber.reach(1, seconds=0.5)


# The listener ------------------------------------------------------------------------------------------------------


async def test_the_listener_reconnects_with_growing_pauses(
    start: Start, connection: asyncpg.Connection, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []

    def pause(failures: int) -> float:
        pauses.append(backoff(failures))
        return 0.001

    node = await start(settings=replace(RUNG, listen_url=proxy.dsn), pause=pause)
    await listening(connection, 1)

    def logged() -> list[str]:
        said = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
        return [line.partition(":")[0] for line in said]

    await proxy.go_away()
    await until(lambda: len(pauses) >= 5 and logged())  # it is logged when the node has asked PostgreSQL
    await proxy.listen()
    await until(lambda: not node.supervisor.troubles)
    assert all(0.05 * 2**n <= pause <= 0.1 * 2**n for n, pause in enumerate(pauses[:5]))
    assert logged() == ["listener failed, though PostgreSQL answers"]
    async with aclosing(Subscriber(node)) as subscriber:
        await opened(node)
        await subscriber.reach(1)


async def test_unread_rings_of_one_name_are_merged_into_the_latest() -> None:
    bell = PostgresBell(None)  # type: ignore[arg-type]  # it does not connect in this test
    for payload in ("log:1", "Account:1", "log:2", "User:1", "log:3", "Account:3"):
        bell.hear(payload)
    async with asyncio.timeout(5):
        assert [(await bell.next_published()).message for _ in range(3)] == ["User:1", "log:3", "Account:3"]
        waiting = asyncio.create_task(bell.next_published())
        await asyncio.wait([waiting], timeout=0)
        assert not waiting.done()
        bell.hear("log:4")
        assert (await waiting).message == "log:4"


STRANGE = ["", ":", ":5", "nonsense", "log:", "log:x", "log:-1", "log:1:2", "log:²", "log:1.5", "log:" + "9" * 5000]


async def test_unknown_notifications_are_logged_and_ignored(
    start: Start, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    node = await start(settings=RUNG)
    account = await opened(node)
    async with aclosing(Subscriber(node)) as subscriber:
        await subscriber.reach(1)
        for place, payload in enumerate(STRANGE, 2):
            await connection.execute("select pg_notify('headwater', $1)", payload)
            await connection.execute(f"select pg_notify('headwater', 'Marker:{place}')")
            await reached(node.positions, "Marker", place)
            assert node.positions.known(LOG) == place - 1, payload
            await subscriber.reach(await deposit(node, account))
    assert node.supervisor.troubles == {}
    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warned) == len([payload for payload in STRANGE if payload.partition(":")[0]])
    assert all(
        line.startswith("ignored an unknown notification on channel headwater: ") and len(line) < 150 for line in warned
    )


# Going back --------------------------------------------------------------------------------------------------------


async def test_a_ring_for_a_position_beyond_the_log_causes_few_looks(
    nodes: tuple[Node, Node], connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    serves, works = nodes
    looks: Counter[str] = Counter()

    def counted(owner: type, name: str) -> None:
        look = getattr(owner, name)

        async def counting(self: Any, *arguments: Any, **options: Any) -> Any:
            looks[name] += 1
            return await look(self, *arguments, **options)

        monkeypatch.setattr(owner, name, counting)

    account = await opened(serves)
    following = asyncio.ensure_future(anext(serves.serving.trail.follow(Wanted(), 1)))
    async with aclosing(Subscriber(serves)) as subscriber:
        await subscriber.reach(1)
        for owner, name in ((Log, "read_on"), (Reader, "changes"), (Log, "head")):
            counted(owner, name)
        # As rings of a failed server, whose log was longer than that of its replacement.
        for name in ("log", "Account", "User"):
            await connection.execute(f"notify headwater, '{name}:1000'")
        await connection.execute("notify headwater, 'Marker:1'")
        for node in nodes:
            await reached(node.positions, "Marker", 1)
        await asyncio.wait([following], timeout=0.3)
        assert all(count <= 6 for count in looks.values()), looks
        position = await deposit(serves, account)
        await subscriber.reach(position, seconds=5)  # without a poll: true rings are heard again
        assert (await asyncio.wait_for(following, 5))[0].position == position
    assert works.positions.known(LOG) == serves.positions.known("Account") == position


async def test_heard_positions_are_forgotten_when_the_connection_is_lost(
    start: Start, connection: asyncpg.Connection, pause: float
) -> None:
    """A crash of PostgreSQL can lose the last commits of a projection. Readers must not rely on their positions."""
    node = await start(settings=replace(RUNG, at_least_seconds=0.05), work=False, pause=lambda failures: pause)
    reader = node.serving.feeds[AccountView].reader
    await listening(connection, 1)
    await connection.execute("notify headwater, 'Account:100'")
    await reached(node.positions, "Account", 100)
    await reader.reach(100)
    assert await kill_listeners(connection) == 1
    await until(lambda: "listener" in node.supervisor.troubles)
    with pytest.raises(ProjectionBehind):
        await reader.reach(100)
    await until(lambda: not node.supervisor.troubles)
    with pytest.raises(ProjectionBehind):
        await reader.reach(100)
    await opened(node)
    assert node.positions.known(LOG) == 1


# Positions ---------------------------------------------------------------------------------------------------------


async def test_a_wait_ends_at_a_later_position_of_its_name_only() -> None:
    positions = Positions()
    positions.report("log", 5)
    await asyncio.wait_for(positions.moved("log", 4, 60), 1)
    waiting = asyncio.create_task(positions.moved("log", 5, 60))
    other = asyncio.create_task(positions.moved("Account", 0, 60))
    await asyncio.wait([waiting, other], timeout=0)
    positions.report("log", 4)
    positions.report("log", 5)
    await asyncio.wait([waiting, other], timeout=0)
    assert (waiting.done(), other.done(), positions.known("log")) == (False, False, 5)
    positions.report("log", 6)
    await asyncio.wait_for(waiting, 1)
    assert not other.done()
    positions.wake_everyone()
    await asyncio.wait_for(other, 1)
    assert positions.waiting == 0


async def test_an_alarm_between_a_look_and_the_wait_is_not_missed() -> None:
    positions = Positions()
    alarms = positions.alarms
    positions.wake_everyone()  # while the caller reads and does not wait yet
    async with asyncio.timeout(5):
        await positions.moved(LOG, 0, 3600, alarms)
    waiting = asyncio.create_task(positions.moved(LOG, 0, 3600, positions.alarms))
    await asyncio.wait([waiting], timeout=0)
    assert not waiting.done(), "an alarm ends one wait"
    positions.wake_everyone()
    async with asyncio.timeout(5):
        await waiting


async def test_a_wait_ends_after_its_timeout() -> None:
    positions = Positions()
    await asyncio.wait_for(positions.moved("log", 0, 0.01), 1)
    assert positions.waiting == 0


async def test_a_false_position_is_corrected_by_a_look_at_the_database() -> None:
    positions = Positions()
    positions.report("log", 1000)
    positions.correct("log", heard=1000, found=5)
    assert positions.known("log") == 5
    positions.report("log", 6)
    positions.correct("log", heard=5, found=5)
    assert positions.known("log") == 6, "a report that came after the look at the database is kept"
    positions.correct("log", heard=6, found=9)
    assert positions.known("log") == 6
    positions.forget()
    assert positions.known("log") == 0
