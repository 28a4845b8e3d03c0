"""`headwater schema`: prints the GraphQL schema of the app, or compares it with a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from headwater.cli.application import load
from headwater.cli.output import complain, print_document
from headwater.config import Settings
from headwater.graphql.schema import print_schema


def run(chosen: argparse.Namespace, settings: Settings) -> int:
    printed = print_schema(load(chosen.app).schema)
    if chosen.check is None:
        print_document(printed)
        return 0
    held = Path(chosen.check)
    if _text_of(held) == printed:
        return 0
    return complain(f"{held} differs from the schema of the app; write it with `headwater schema > {held}`")


def _text_of(file: Path) -> str | None:
    """Return the text of a file; None if there is no such file or it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else None
    except UnicodeDecodeError:
        return None
