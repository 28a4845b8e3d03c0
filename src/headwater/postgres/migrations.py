"""Bringing a database's schema to what this version needs. Alembic runs the scripts of `migrations/`."""

from __future__ import annotations

from pathlib import Path

import asyncpg
from alembic import command, op
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from headwater.errors import HeadwaterError

# Two deployments may migrate at the same moment; the number is any that nobody else uses.
_LOCK = text("select pg_advisory_xact_lock(4811962031)")


class SchemaMissing(HeadwaterError):
    """The database has no Headwater schema, or an older one than this version needs: run `headwater migrate`."""


def scripts() -> Path:
    """Where the migrations lie: inside the installed package, or at the top of a clone."""
    package = Path(__file__).parents[1]
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent.parent / "migrations"


async def migrate(dsn: str) -> None:
    """Bring the schema up to date. Safe to run again, and at the same time from several places."""
    # asyncpg reads the DSN itself, so that every option it knows means the same here as when serving.
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(dsn, timeout=10), poolclass=NullPool
    )
    try:
        async with engine.begin() as connection:
            await connection.execute(_LOCK)
            await connection.run_sync(_upgrade)
    finally:
        await engine.dispose()


def run_script(migration: str) -> None:
    """Run the SQL that lies beside a migration, under its name. There is no way back: what undoes a migration is a
    backup."""
    script = Path(migration).with_suffix(".sql").read_text(encoding="utf-8")
    # The driver's own execute: a prepared statement holds one statement only.
    op.get_bind().connection.dbapi_connection.run_async(lambda connection: connection.execute(script))  # type: ignore[union-attr]  # asyncpg's adapter


def _upgrade(connection: Connection) -> None:
    config = Config()
    # A percent sign in a path would be read as an interpolation.
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def require_schema(pool: asyncpg.Pool) -> None:
    """Raise SchemaMissing unless the schema is the one that this code was written for, or a newer one: in a rolling
    deploy the database is migrated while older code still runs."""
    found = None
    if not await pool.fetchval("select to_regclass('public.schema_version') is null"):
        found = await pool.fetchval("select version_num from public.schema_version")
    needed = _newest()
    if found is None:
        raise SchemaMissing("The database has no Headwater schema: run `headwater migrate`.")
    if found < needed:
        raise SchemaMissing(
            f"The database's schema is version {found}, and this version of Headwater needs {needed}: run "
            "`headwater migrate`."
        )


def _newest() -> str:
    """The number of the last script: four digits, as the database has it."""
    return max(path.stem for path in (scripts() / "versions").glob("[0-9]*.py"))[:4]
