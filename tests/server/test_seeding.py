"""A seed fills a database through the front door: the same bytes on every run, and nothing on the second one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from decimal import Decimal

import asyncpg
import pytest
from tests.support.bank_api import QUICK
from tests.support.commands import run_command

from bank.accounts.domain import Deposit, OpenAccount
from bank.main import app
from bank.seed import seed as bank_seed
from headwater import Command, Seed, replace
from headwater.domain.seed import SeedFunction
from headwater.postgres.embedded import EmbeddedPostgres
from headwater.pytest_plugin import cloned
from headwater.server.seeding import SeedFailed, run_seed

LOG = """
select position, stream_id, version, ordinal, category, type, command, command_id, correlation_id, causation_id, actor,
       tenant, data from headwater.events order by position
"""


@pytest.fixture
def other_dsn(postgres: EmbeddedPostgres, headwater_template: str) -> Iterator[str]:
    with cloned(postgres, headwater_template) as other:
        yield other


async def log_of(dsn: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    try:
        return list(await connection.fetch(LOG))
    finally:
        await connection.close()


async def sown(dsn: str, function: SeedFunction, name: str = "test") -> list[asyncpg.Record]:
    await run_seed(app, replace(QUICK, database_url=dsn), name, function)
    return await log_of(dsn)


async def test_a_seed_writes_the_same_bytes_into_every_empty_database_and_nothing_on_the_second_run(
    dsn: str, other_dsn: str
) -> None:
    first = await sown(dsn, bank_seed, "bank.seed")
    for _ in range(2):
        code, out, err = await run_command("seed", "bank.seed", DATABASE_URL=other_dsn)
        assert (code, out, err) == (0, "All 19 commands of bank.seed are in the log.\n", "")
        assert await log_of(other_dsn) == first
    assert len(first) == 19


async def test_a_longer_seed_appends_what_is_new_and_equal_commands_are_told_apart(dsn: str) -> None:
    def short(seed: Seed) -> Iterator[tuple[Command, str | None]]:
        account = seed.id("account")
        yield OpenAccount(account_id=account, owner_id=seed.id("ada"), currency="EUR"), None
        yield Deposit(account_id=account, amount=Decimal(5)), "teller"

    async def longer(seed: Seed) -> AsyncIterator[tuple[Command, str | None]]:
        for item in short(seed):
            yield item
        yield Deposit(account_id=seed.id("account"), amount=Decimal(5)), "teller"

    before = await sown(dsn, short)
    after = await sown(dsn, longer)
    assert (after[:2], len(after)) == (before, 3)


async def test_a_refused_or_misshapen_item_is_named_and_ends_the_seed(dsn: str) -> None:
    def refused(seed: Seed) -> Iterator[tuple[Command, str | None]]:
        yield OpenAccount(account_id=seed.id("a"), owner_id=seed.id("ada"), currency="EUR"), None
        yield Deposit(account_id=seed.id("b"), amount=Decimal(5)), None

    def misshapen(seed: Seed) -> Iterator[object]:
        yield OpenAccount(account_id=seed.id("c"), owner_id=seed.id("ada"), currency="EUR")

    with pytest.raises(SeedFailed, match=r"item 2 of test was refused: Deposit\(.*ACCOUNT_NOT_FOUND: There is no such"):
        await sown(dsn, refused)
    with pytest.raises(SeedFailed, match=r"item 1 of test is OpenAccount.* yield a command and its actor"):
        await sown(dsn, misshapen)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(SeedFailed, match=r"must be a generator of .*, and not return list"):
        await sown(dsn, lambda seed: [])  # type: ignore[arg-type, return-value]  # what is tested
    assert len(await log_of(dsn)) == 1


def test_the_time_of_a_seed_moves_only_forward() -> None:
    seed, other = Seed(), Seed()
    assert (seed.now, seed.id("ada")) == (other.now, other.id("ada"))
    seed.advance(timedelta(days=1))
    assert seed.now - other.now == timedelta(days=1)
    with pytest.raises(ValueError, match="time does not go back"):
        seed.advance(timedelta(seconds=-1))
