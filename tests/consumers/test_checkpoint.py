"""The checkpoint of a consumer: read, moved by compare-and-swap, and locked under its lease."""

from __future__ import annotations

import asyncio
from typing import Literal

import asyncpg
import pytest

from headwater.consumers.checkpoint import Checkpoint, CheckpointMoved, Generation

State = Literal["live", "building"]


async def checkpoint(connection: asyncpg.Connection, *, state: State = "live", fence: int = 3) -> Checkpoint:
    """The checkpoint of the generation 1 of `thing`, which is at position 10 under the fencing token 3."""
    await connection.execute(
        "insert into headwater.projections (name, generation, version, fingerprint, table_name, position, state, fence)"
        " values ('thing', 1, 1, '', '', 10, $1, 3)",
        state,
    )
    return Checkpoint(connection, "thing", Generation(1, "", 0, fence, ""), state=state)


async def position(connection: asyncpg.Connection) -> int:
    value: int = await connection.fetchval("select position from headwater.projections where name = 'thing'")
    return value


@pytest.mark.parametrize("state", ["live", "building"])
async def test_a_checkpoint_moves_from_where_it_was_read(connection: asyncpg.Connection, state: State) -> None:
    thing = await checkpoint(connection, state=state)
    assert await thing.read() == 10
    await thing.move(10, 12)
    await thing.skip(12, 20)
    assert await thing.read() == await position(connection) == 20


async def test_a_second_move_from_the_same_position_is_refused(connection: asyncpg.Connection) -> None:
    thing = await checkpoint(connection)
    await thing.move(10, 12)
    with pytest.raises(CheckpointMoved):
        await thing.move(10, 13)
    with pytest.raises(CheckpointMoved):
        await thing.skip(10, 13)
    assert await position(connection) == 12


@pytest.mark.parametrize("fence", [2, 4])
async def test_another_fencing_token_neither_reads_nor_moves_nor_holds(
    connection: asyncpg.Connection, fence: int
) -> None:
    thing = await checkpoint(connection, fence=fence)
    assert await thing.read() is None
    with pytest.raises(CheckpointMoved):
        await thing.move(10, 12)
    with pytest.raises(CheckpointMoved):
        await thing.skip(10, 12)
    with pytest.raises(CheckpointMoved):
        await thing.hold()
    assert await position(connection) == 10


async def test_a_generation_in_another_state_is_no_longer_held(connection: asyncpg.Connection) -> None:
    thing = await checkpoint(connection, state="building")
    await connection.execute("update headwater.projections set state = 'live'")
    assert await thing.read() is None
    with pytest.raises(CheckpointMoved):
        await thing.move(10, 12)


async def test_a_held_lease_cannot_be_taken_before_the_transaction_ends(
    dsn: str, connection: asyncpg.Connection
) -> None:
    thing = await checkpoint(connection)
    take = "select from headwater.projections where name = 'thing' for update skip locked"
    other = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await thing.hold()
            assert await other.fetch(take) == []
        assert len(await other.fetch(take)) == 1
    finally:
        await other.close()


async def test_only_a_live_generation_rings_its_doorbell(dsn: str, connection: asyncpg.Connection) -> None:
    rings: asyncio.Queue[object] = asyncio.Queue()
    listener = await asyncpg.connect(dsn)
    try:
        await listener.add_listener("headwater", lambda *heard: rings.put_nowait(heard[-1]))
        building = await checkpoint(connection, state="building")
        await building.move(10, 11)
        await connection.execute("update headwater.projections set state = 'live' where name = 'thing'")
        await Checkpoint(connection, "thing", Generation(1, "", 0, 3, "")).move(11, 12)
        assert await asyncio.wait_for(rings.get(), 20) == "thing:12"
    finally:
        await listener.close()
