"""`headwater migrate`: updates the schema of the log, and creates the tables of the app's read models."""

from __future__ import annotations

import argparse

from headwater.app import App
from headwater.cli.application import load
from headwater.cli.connection import reaching, session_dsn_of, session_variable
from headwater.cli.loop import complete
from headwater.cli.steps import Report, silent
from headwater.config import Settings
from headwater.postgres.database import Database
from headwater.postgres.migrations import migrate
from headwater.postgres.requirements import checked, require_to_migrate
from headwater.projections.generations import prepare_views, schemas_of
from headwater.server.worker import register_units


def run(chosen: argparse.Namespace, settings: Settings) -> None:
    app = load(chosen.app)
    complete(migrated(app, settings, session_dsn_of(settings)))
    print("The database is up to date.")


async def migrated(app: App, settings: Settings, dsn: str, report: Report = silent) -> None:
    """Migrate the database, create read-model tables, and register the app's projections, sagas and reactors.

    `headwater dev` does this at every start.
    """
    with reaching(session_variable(settings)):
        report("migrating the database")
        async with checked(dsn) as connection:
            await require_to_migrate(connection, ["headwater", *schemas_of(app.domain.views)])
        await migrate(dsn)
        report("creating read-model tables")
        await prepare_views(dsn, app.domain.views)
        async with Database(dsn, pool_size=1) as database, database.pool.acquire() as connection:
            await register_units(connection, app.domain, insist=True)
