"""`headwater check`: proves that the app can read every kind of event in the log, before it is deployed."""

from __future__ import annotations

import argparse

from headwater.app import App
from headwater.cli.application import load
from headwater.cli.connection import migrated_database
from headwater.cli.loop import complete
from headwater.cli.output import complain
from headwater.config import Settings
from headwater.eventstore.compatibility import Stored, check, complaint


def run(chosen: argparse.Namespace, settings: Settings) -> int:
    kinds = complete(_checked(load(chosen.app), settings))
    unreadable = [kind for kind in kinds if kind.unreadable is not None]
    if unreadable:
        return complain(complaint(unreadable))
    print(f"The app can read the whole log: {sum(k.count for k in kinds):,} events of {len(kinds)} kinds.")
    for kind in kinds:
        print(f"  {kind}")
    return 0


async def _checked(app: App, settings: Settings) -> list[Stored]:
    async with migrated_database(settings, pool_size=1) as database:
        return await check(database.pool, app.domain)
