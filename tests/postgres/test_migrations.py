"""The migrations, the dump of the schema that they make, and the upgrade to a later schema."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from tests.conftest import INSTALLED
from tests.support.executing import accepted

from bank.main import app as bank
from bank.users.domain import RegisterUser
from headwater.config import Settings
from headwater.postgres.embedded import EmbeddedPostgres
from headwater.postgres.migrations import migrate
from headwater.postgres.schema_version import SchemaMissing, require_schema, scripts
from headwater.projections.generations import prepare_views
from headwater.server.node import Node

ROOT = Path(__file__).parents[2]

LATER = '''
"""A migration of a later release."""

from headwater.postgres.migrations import run_script

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run_script(__file__)
'''


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """The migrations of a later release: those of today, and one more."""
    folder = tmp_path / "100% later"
    shutil.copytree(scripts(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "0002_branch.py").write_text(LATER)
    (folder / "versions" / "0002_branch.sql").write_text("alter table headwater.events add column branch text;")
    return folder


@pytest.mark.skipif(INSTALLED is not None, reason="schema.sql is what the embedded PostgreSQL dumps")
async def test_schema_sql_is_the_schema_that_the_migrations_make(postgres: EmbeddedPostgres, blank_dsn: str) -> None:
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


async def test_older_code_goes_on_while_and_after_the_database_is_migrated(blank_dsn: str, later: Path) -> None:
    """A deploy without downtime has two steps: migrate the database under the old code, then start the new code."""
    await migrate(blank_dsn)
    await prepare_views(blank_dsn, bank.domain.views)
    async with Node(bank, Settings(), blank_dsn, serve=True, work=True) as running:
        first = await accepted(running, _register("ada"))
        await migrate(blank_dsn, later)
        second = await accepted(running, _register("grace"))
        assert second.position == first.position + 1
    async with Node(bank, Settings(), blank_dsn, serve=True, work=True) as restarted:
        third = await accepted(restarted, _register("edsger"))
        assert third.position == second.position + 1


async def test_newer_code_refuses_a_database_that_is_not_migrated_yet(blank_dsn: str, later: Path) -> None:
    await migrate(blank_dsn)
    async with asyncpg.create_pool(blank_dsn, min_size=1, max_size=1) as pool:
        with pytest.raises(SchemaMissing, match=r"version 0001, .* needs 0002: run `headwater migrate`"):
            await require_schema(pool, later)
        await migrate(blank_dsn, later)
        await require_schema(pool, later)
        await require_schema(pool)


def test_each_script_has_the_next_number_and_a_name() -> None:
    names = sorted(path.stem for path in (scripts() / "versions").glob("*.py"))
    assert [name[:5] for name in names] == [f"{number:04}_" for number in range(1, len(names) + 1)]


def _register(name: str) -> RegisterUser:
    return RegisterUser(user_id=uuid4(), name=name, email=f"{name}@example.com")


def _dump(postgres: EmbeddedPostgres, name: str) -> str:
    spec = importlib.util.spec_from_file_location("dump", ROOT / "migrations" / "dump.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dumped: str = module.dump(postgres, name)
    return dumped
