"""Brings the database's schema up to date. Alembic runs the scripts in the folder `migrations/`."""

from __future__ import annotations

from pathlib import Path

from alembic import command, op
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from headwater.postgres.hosts import open_connection
from headwater.postgres.schema_version import scripts

# Serializes deployments that migrate at the same time. The number is arbitrary, and used for nothing else.
_LOCK = text("select pg_advisory_xact_lock(4811962031)")


async def migrate(dsn: str, folder: Path | None = None) -> None:
    """Bring the schema up to date. Safe to repeat, and to run from several places at once.

    folder: of the migrations; Headwater's own when left out.
    """
    # asyncpg parses the DSN, so that every option means the same here as when serving.
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: open_connection(dsn), poolclass=NullPool
    )
    try:
        async with engine.begin() as connection:
            await connection.execute(_LOCK)
            await connection.run_sync(_make_schema)
            await connection.run_sync(_upgrade, folder or scripts())
    finally:
        await engine.dispose()


def run_script(migration: str) -> None:
    """Run the `.sql` file beside a migration. There is no downgrade: restore a backup instead."""
    script = Path(migration).with_suffix(".sql").read_text(encoding="utf-8")
    # The driver's own execute, because a prepared statement holds one statement only.
    op.get_bind().connection.dbapi_connection.run_async(lambda connection: connection.execute(script))  # type: ignore[union-attr]  # asyncpg's adapter


def _make_schema(connection: Connection) -> None:
    """Create the schema if it is missing: the version is stored in it before the first script runs."""
    if connection.scalar(text("select to_regnamespace('headwater') is null")):
        connection.execute(text("create schema headwater"))


def _upgrade(connection: Connection, folder: Path) -> None:
    config = Config()
    # Alembic interpolates percent signs in its options.
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
