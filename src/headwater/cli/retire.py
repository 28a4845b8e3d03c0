"""`headwater retire NAME`: retires a read model, saga or reactor that was removed from the app."""

from __future__ import annotations

import argparse

from headwater.app import App
from headwater.cli.application import load
from headwater.cli.connection import ask
from headwater.config import Settings
from headwater.errors import SettingsError
from headwater.projections.retire import retire
from headwater.server.worker import names_of


def run(chosen: argparse.Namespace, settings: Settings) -> None:
    _require_gone(load(chosen.app), chosen.name)
    ask(settings, lambda connection: retire(connection, chosen.name))
    print(f"{chosen.name} is retired. A worker drops its rows, if it had any, after HEADWATER_RETIRED_SECONDS.")


def _require_gone(app: App, name: str) -> None:
    if name in names_of(app.domain):
        raise SettingsError(
            f"the app still contains {name}; remove it from the code, and deploy that to every node first"
        )
