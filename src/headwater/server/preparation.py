"""What a process needs before it starts: a database that runs, with the schema and the tables of the app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from headwater.config import Settings
from headwater.postgres import embedded
from headwater.postgres.database import Database
from headwater.postgres.embedded.home import Report
from headwater.postgres.requirements import checked, require_to_migrate
from headwater.projections.generations import prepare_views, schemas_of
from headwater.server.worker import register_units

if TYPE_CHECKING:
    from headwater.app import App


def silent(step: str) -> None:
    """Report nothing."""


@asynccontextmanager
async def own_database(settings: Settings, report: Report = silent) -> AsyncIterator[str]:
    """Yield DATABASE_URL if it is set, else the address of the embedded PostgreSQL, which runs meanwhile."""
    if settings.database_url is not None:
        yield settings.database_url
        return
    server = await asyncio.to_thread(embedded.start, settings.data, report=report)
    try:
        yield server.dsn()
    finally:
        await asyncio.to_thread(server.stop)


async def migrate_app(app: App, dsn: str, report: Report = silent) -> None:
    """Migrate the database, create read-model tables, and register the app's projections, sagas and reactors."""
    from headwater.postgres.migrations import migrate  # Alembic, which a migrated database does not need

    report("migrating the database")
    async with checked(dsn) as connection:
        await require_to_migrate(connection, ["headwater", *schemas_of(app.domain.views)])
    await migrate(dsn)
    report("creating read-model tables")
    await prepare_views(dsn, app.domain.views)
    async with Database(dsn, pool_size=1) as database, database.pool.acquire() as connection:
        await register_units(connection, app.domain, insist=True)
