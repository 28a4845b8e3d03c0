"""`headwater verify [NAME]`: compares stored rows with a fold of the log."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from headwater.app import App
from headwater.cli.application import app_option, load, view_named
from headwater.cli.commands import Commands, command, count
from headwater.cli.connection import dsn_to_ask, migrated_database
from headwater.cli.loop import complete
from headwater.cli.output import answer, complain
from headwater.config import Settings
from headwater.domain.read_model import View
from headwater.eventstore.log import Log
from headwater.projections.verify import NotVerifiable, Verifier
from headwater.projections.verify_report import VerifyReport


def add(commands: Commands) -> None:
    text = "fold the log again and compare the result with the stored rows"
    each = command(commands, "verify", _verify, text, parents=[app_option()])
    each.add_argument("name", metavar="NAME", nargs="?", help="the read model, as in GraphQL; default: all")
    how_many = each.add_mutually_exclusive_group()
    how_many.add_argument(
        "--sample", type=count, default=1000, metavar="N", help="compare N random rows (default: 1000)"
    )
    how_many.add_argument("--all", action="store_true", help="compare every row")


def _verify(chosen: argparse.Namespace, settings: Settings) -> int:
    app = load(chosen.app)
    views = app.domain.views if chosen.name is None else [view_named(app, chosen.name)]
    reports, left = complete(_verified(app, dsn_to_ask(settings), views, None if chosen.all else chosen.sample))
    code = answer((line for report in reports for line in report.lines()), int(any(each.found for each in reports)))
    for each in left:
        code = complain(str(each))
    return code


async def _verified(
    app: App, dsn: str, views: Sequence[View[Any]], sample: int | None
) -> tuple[list[VerifyReport], list[NotVerifiable]]:
    """Verify each view. Returns the reports, and the errors of the views that cannot be verified."""
    reports, left = [], []
    async with migrated_database(dsn, pool_size=2) as database:
        log = Log(database.pool, app.domain.codec)
        for view in views:
            try:
                verifier = Verifier(log, view, by_stream=app.domain.by_stream(view))
                reports.append(await verifier.live(database, sample))
            except NotVerifiable as error:
                left.append(error)
    return reports, left
