"""Checks from the log alone that transfers neither lose nor double money."""

from __future__ import annotations

from collections import Counter

import asyncpg
from tests.support.folding import logged

from bank.main import app
from headwater.testing import violations

EFFECTS = """
    select data->>'transfer_id' as transfer_id, array_agg(type::text order by position) as types
      from headwater.events
     where type = any('{TransferRequested,TransferSent,TransferReceived,TransferReturned,TransferWithdrawn,
                        TransferSettled,TransferCompleted,TransferRefused,TransferRefunded}')
     group by 1
"""
WAYS = {
    (
        "TransferRequested",
        "TransferSent",
        "TransferWithdrawn",
        "TransferReceived",
        "TransferSettled",
        "TransferCompleted",
    ),
    ("TransferRequested", "TransferSent", "TransferWithdrawn", "TransferReturned", "TransferRefunded"),
    ("TransferRequested", "TransferRefused"),
}
BALANCES = """
    select coalesce(sum(balance), 0) from (
      select distinct on (stream_id) (data->>'balance')::numeric as balance
        from headwater.events where category = 'account' and data->>'balance' is not null
       order by stream_id, version desc
    ) last
"""
ON_ITS_WAY = """
    select coalesce(sum(case type when 'TransferSent' then 1 else -1 end * (data->>'amount')::numeric), 0)
      from headwater.events where type in ('TransferSent', 'TransferReceived', 'TransferReturned')
"""
PAID_IN = """
    select coalesce(sum(case type when 'MoneyDeposited' then 1 else -1 end * (data->>'amount')::numeric), 0)
      from headwater.events where type in ('MoneyDeposited', 'MoneyWithdrawn')
"""


async def money_is_right(connection: asyncpg.Connection) -> None:
    """Check that balances plus money in transit equal deposits minus withdrawals, and the invariants of the bank. Both
    hold at every moment."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        balances = await connection.fetchval(BALANCES)
        on_its_way = await connection.fetchval(ON_ITS_WAY)
        assert balances + on_its_way == await connection.fetchval(PAID_IN)
        log = await logged(connection, app.domain.codec)
        assert [violations(each, log) for each in app.domain.invariants] == [[], []]


async def transfer_ends(connection: asyncpg.Connection) -> Counter[str]:
    """Check that each transfer took one of the allowed ways to its end. Returns the count of each final event type.

    All transfers must have ended.
    """
    ends: Counter[str] = Counter()
    for row in await connection.fetch(EFFECTS):
        assert tuple(row["types"]) in WAYS, (row["transfer_id"], row["types"])
        ends[row["types"][-1]] += 1
    assert await connection.fetchval(ON_ITS_WAY) == 0
    return ends
