"""`headwater status`: projections, sagas and processes at a glance."""

from __future__ import annotations

import argparse

from headwater.cli.application import limits
from headwater.cli.connection import ask
from headwater.cli.output import json_text
from headwater.cli.status_report import status
from headwater.config import Settings


def run(chosen: argparse.Namespace, settings: Settings) -> None:
    known = limits(chosen.app) or {}
    now = ask(settings, lambda connection: status(connection, known))
    print(json_text(now.as_json()) if chosen.json else now.as_text())
