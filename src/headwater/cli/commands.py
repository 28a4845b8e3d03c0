"""How a command is declared: its name, its sentence, and the function that it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TypeAlias

from headwater.config import Settings

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What commands are added to: the whole command line, or a group such as `dead-letters`. argparse has no public name
for it."""

LARGEST = 2**62
"""Of a number that is said: what PostgreSQL can count to, and some more."""

Run: TypeAlias = Callable[[argparse.Namespace, Settings], int | None]
"""Returns the exit code; None is 0. Errors of Headwater, PostgreSQL and the system are answered by `main`."""


def command(
    commands: Commands, name: str, run: Run, text: str, *, parents: Sequence[argparse.ArgumentParser] = ()
) -> argparse.ArgumentParser:
    """Add one command. Returns its parser, for the options of its own."""
    parser = commands.add_parser(name, parents=parents, help=text, description=text)
    parser.set_defaults(command=run)
    return parser


def position(text: str) -> int:
    """A place in the log, from an argument."""
    return _number(text, 0)


def count(text: str) -> int:
    """How many, from an argument: at least one."""
    return _number(text, 1)


def _number(text: str, least: int) -> int:
    number = int(text)
    if not least <= number <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text} must be from {least} to {LARGEST}")
    return number


def group(commands: Commands, name: str, text: str, description: str | None = None) -> Commands:
    """Add a word that has commands of its own, which are added to what is returned."""
    parser = commands.add_parser(name, help=text, description=description or text)
    return parser.add_subparsers(required=True, metavar="COMMAND")
