"""A process opens as many connections to PostgreSQL as docs/deploying.md says, and no more."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support.waiting import until

from bank.main import app as bank
from headwater.config import Settings
from headwater.server.node import PROBES, Node

Start: TypeAlias = Callable[..., Awaitable[Node]]

PAGE = (Path(__file__).parents[2] / "docs" / "deploying.md").read_text(encoding="utf-8")
FIXED = dict(re.findall(r"^\| `headwater (\w+)` \| `HEADWATER_POOL_SIZE` \+ (\d+)", PAGE, re.MULTILINE))
POOL = 3
HEALTH = 1
UNITS = Counter({"headwater projection User": 1, "headwater projection Account": 1, "headwater projection Transfer": 1})
UNITS += Counter({"headwater saga Transfer": 1, "headwater reactor statements": 1})
ALWAYS = Counter({"headwater": POOL + PROBES + HEALTH, "headwater listener": 1, "headwater appender": 1})
WORKING = Counter({"headwater leases": 1}) + UNITS
SHORT = {"serve": {"probe"}, "work": {"probe", "tombstones", "retired tables"}}
"""Connections that are open only while they are used."""


async def opened(connection: asyncpg.Connection) -> Counter[str]:
    """Return the connections of processes to the test's database, by their names."""
    rows = await connection.fetch(
        "select application_name from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid() and application_name like 'headwater%'"
    )
    return Counter(row[0] for row in rows)


@pytest.mark.parametrize("kind, held", [("serve", ALWAYS), ("work", ALWAYS + WORKING)])
async def test_a_busy_process_has_as_many_connections_as_the_guide_says(
    start: Start, connection: asyncpg.Connection, kind: str, held: Counter[str]
) -> None:
    node = await start(settings=replace(Settings(), pool_size=POOL), serve=kind == "serve", work=kind == "work")
    async with AsyncExitStack() as stack:
        for pool, size in ((node.database.pool, POOL), (node.probe.pool, PROBES)):
            for _ in range(size):
                await stack.enter_async_context(pool.acquire())

        async def all_are_there() -> bool:
            return Counter({name: n for name, n in (await opened(connection)).items() if name not in short}) == held

        short = {f"headwater {name}" for name in SHORT[kind]}
        await until(all_are_there)
    units = len(UNITS) if kind == "work" else 0
    assert POOL + int(FIXED[kind]) + units == held.total() + len(short)


def test_the_guide_counts_the_units_of_the_bank() -> None:
    domain = bank.domain
    assert (len(domain.views), len(domain.sagas), len(domain.reactors), len(domain.schedules)) == (3, 1, 1, 0)
    serve, work = 10 + int(FIXED["serve"]), 10 + int(FIXED["work"]) + len(UNITS)
    assert f"3 * {serve} + 3 * {work} = {3 * serve + 3 * work}." in PAGE
