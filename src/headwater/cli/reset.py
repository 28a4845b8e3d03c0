"""`headwater reset`: removes the database of `headwater dev`."""

from __future__ import annotations

import argparse
import sys

from headwater.config import Settings
from headwater.errors import SettingsError
from headwater.postgres import embedded


def run(chosen: argparse.Namespace, settings: Settings) -> int | None:
    """Return 1 if the answer to the question is not yes."""
    if settings.database_url is not None:
        raise SettingsError(
            "`headwater reset` removes only the database that `headwater dev` has made, and DATABASE_URL names "
            "another; unset it"
        )
    if not embedded.exists(settings.data):
        raise SettingsError(f"there is no database in {settings.data}; nothing was removed")
    if not chosen.yes and not _confirmed(settings):
        print("Nothing was removed.")
        return 1
    embedded.remove(settings.data)
    print(f"The database in {settings.data} is removed. The next `headwater dev` makes an empty one.")
    return None


def _confirmed(settings: Settings) -> bool:
    if not sys.stdin.isatty():
        raise SettingsError("`headwater reset` asks before it removes anything; without a terminal, add --yes")
    try:
        return input(f"Remove the database in {settings.data}, with all of its events? [y/N] ").strip() in ("y", "yes")
    except EOFError:
        return False
