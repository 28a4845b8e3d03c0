"""The list of commands, and the settings that options of the command line replace."""

from __future__ import annotations

import argparse
from importlib.metadata import version

import msgspec

from headwater.cli import (
    check,
    dead_letters,
    events,
    lost,
    migrate,
    processes,
    rebuild,
    retire,
    sagas,
    schema,
    status,
    verify,
)
from headwater.config import Settings
from headwater.errors import SettingsError

GROUPS = [
    processes,
    migrate,
    schema,
    check,
    status,
    dead_letters,
    sagas,
    rebuild,
    verify,
    lost,
    retire,
    events,
]
"""The modules that add commands, in the order that `headwater --help` shows."""


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="headwater", description="Event sourcing for Python on PostgreSQL, served live over GraphQL."
    )
    whole.add_argument("--version", action="version", version=f"headwater {version('headwater')}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for group in GROUPS:
        group.add(commands)
    return whole


def settings_of(chosen: argparse.Namespace) -> Settings:
    """Return the environment's settings, with --host and --port in place of theirs."""
    given = {name: value for name in ("host", "port") if (value := getattr(chosen, name, None)) is not None}
    settings = msgspec.structs.replace(Settings.from_environment(), **given)
    if not 0 <= settings.port <= 65535:
        raise SettingsError(f"--port {settings.port} is not a port; use 1 to 65535, or 0 for any free port")
    return settings
