"""`headwater migrate`: updates the schema of the log, and creates the tables of the app's read models."""

from __future__ import annotations

import argparse

from headwater.app import App
from headwater.cli.application import load
from headwater.cli.connection import session_dsn_of, session_variable
from headwater.cli.loop import complete
from headwater.config import Settings
from headwater.postgres.embedded.home import Report
from headwater.postgres.reaching import reaching
from headwater.server.preparation import migrate_app, silent


def run(chosen: argparse.Namespace, settings: Settings) -> None:
    app = load(chosen.app)
    complete(migrated(app, settings, session_dsn_of(settings)))
    print("The database is up to date.")


async def migrated(app: App, settings: Settings, dsn: str, report: Report = silent) -> None:
    """Migrate the database. A database that cannot be reached is reported as a wrong setting.

    `headwater dev` does this at every start.
    """
    with reaching(session_variable(settings)):
        await migrate_app(app, dsn, report)
