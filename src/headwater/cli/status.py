"""`headwater status`: projections, sagas and processes at a glance."""

from __future__ import annotations

import argparse

from headwater.cli.application import app_option, limits
from headwater.cli.commands import Commands, command
from headwater.cli.connection import ask
from headwater.cli.output import json_text
from headwater.cli.status_report import status
from headwater.config import Settings


def add(commands: Commands) -> None:
    text = "show each projection with its lag, worker and parked keys, the sagas, and the processes"
    each = command(commands, "status", _status, text, parents=[app_option()])
    each.add_argument("--json", action="store_true", help="one JSON object")


def _status(chosen: argparse.Namespace, settings: Settings) -> None:
    known = limits(chosen.app) or {}
    now = ask(settings, lambda connection: status(connection, known))
    print(json_text(now.as_json()) if chosen.json else now.as_text())
