"""The migrations, and the dump of what they make."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from headwater.postgres.embedded import EmbeddedPostgres
from headwater.postgres.migrations import SchemaMissing, migrate, require_schema, scripts

ROOT = Path(__file__).parents[2]


async def test_schema_sql_is_what_the_migrations_make(postgres: EmbeddedPostgres, blank_dsn: str) -> None:
    await migrate(blank_dsn)
    name = urlsplit(blank_dsn).path.removeprefix("/")
    made = _dump(postgres, name)
    assert made == (ROOT / "migrations" / "schema.sql").read_text(), "run `make schema`"


async def test_a_second_run_changes_nothing(postgres: EmbeddedPostgres, blank_dsn: str) -> None:
    await migrate(blank_dsn)
    connection = await asyncpg.connect(blank_dsn)
    await connection.execute("update headwater.head set position = 7")
    await migrate(blank_dsn)
    assert await connection.fetchval("select position from headwater.head") == 7
    await connection.close()


async def test_a_database_without_the_schema_is_refused(blank_dsn: str) -> None:
    async with asyncpg.create_pool(blank_dsn, min_size=1, max_size=1) as pool:
        with pytest.raises(SchemaMissing, match="no Headwater schema: run `headwater migrate`"):
            await require_schema(pool)


async def test_an_older_schema_is_refused_and_a_newer_one_is_not(blank_dsn: str) -> None:
    """Code starts on what a later version has migrated: that is how a deploy without downtime begins."""
    await migrate(blank_dsn)
    async with asyncpg.create_pool(blank_dsn, min_size=1, max_size=1) as pool:
        await require_schema(pool)
        await pool.execute("update public.schema_version set version_num = '0004'")
        with pytest.raises(SchemaMissing, match=r"version 0004, .* needs 00[0-9]{2}: run `headwater migrate`"):
            await require_schema(pool)
        await pool.execute("update public.schema_version set version_num = '9999'")
        await require_schema(pool)


def test_each_script_says_its_number_and_name() -> None:
    names = sorted(path.stem for path in (scripts() / "versions").glob("*.py"))
    assert [name[:4] for name in names] == [f"{number:04}" for number in range(1, len(names) + 1)]


def _dump(postgres: EmbeddedPostgres, name: str) -> str:
    spec = importlib.util.spec_from_file_location("dump", ROOT / "migrations" / "dump.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dumped: str = module.dump(postgres, name)
    return dumped
