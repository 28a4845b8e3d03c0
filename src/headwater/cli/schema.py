"""`headwater schema`: the GraphQL schema of the app, printed or held equal to a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from headwater.cli.application import app_option, load
from headwater.cli.commands import Commands, command
from headwater.cli.output import complain
from headwater.config import Settings
from headwater.graphql.schema import print_schema


def add(commands: Commands) -> None:
    schema = command(commands, "schema", _schema, "print the GraphQL schema", parents=[app_option()])
    schema.add_argument(
        "--check",
        metavar="FILE",
        nargs="?",
        const="schema.graphql",
        help="print nothing, and fail when FILE (schema.graphql) holds another schema",
    )


def _schema(chosen: argparse.Namespace, settings: Settings) -> int:
    printed = print_schema(load(chosen.app).schema)
    if chosen.check is None:
        sys.stdout.write(printed)
        return 0
    held = Path(chosen.check)
    if _text_of(held) == printed:
        return 0
    return complain(f"{held} holds another schema than the app; write it with `headwater schema > {held}`")


def _text_of(file: Path) -> str | None:
    """None when it is no file, or no text."""
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else None
    except UnicodeDecodeError:
        return None
