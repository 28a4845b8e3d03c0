"""Declares commands: the name, the help text, and the function that runs. Also the types of their arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from typing import TypeAlias, cast

from headwater.config import Settings

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""The object that commands are added to: of the whole command line, or of a group such as `dead-letters`.

argparse has no public name for its type.
"""

LARGEST = 2**62
"""The largest number that an argument may be; it and a small addition fit into PostgreSQL's bigint."""

Run: TypeAlias = Callable[[argparse.Namespace, Settings], int | None]
"""Runs a command. Returns the exit code; None is 0. `main` prints errors of Headwater, PostgreSQL and the system."""


def command(
    commands: Commands, name: str, run: str, text: str, *, parents: Sequence[argparse.ArgumentParser] = ()
) -> argparse.ArgumentParser:
    """Add one command. Returns its parser, to which its own options are added.

    run: the function that runs it, as `module:function` in this package; see `function_of`.
    """
    parser = commands.add_parser(name, parents=parents, help=text, description=text)
    parser.set_defaults(command=run)
    return parser


def group(commands: Commands, name: str, text: str, description: str | None = None) -> Commands:
    """Add a word that has commands of its own. Returns what those are added to."""
    parser = commands.add_parser(name, help=text, description=description or text)
    return parser.add_subparsers(required=True, metavar="COMMAND")


def function_of(run: str) -> Run:
    """Import the function that runs a command, with the libraries that it needs."""
    return cast(Run, resolve_name(f"headwater.cli.{run}"))


def position(text: str) -> int:
    """Parse a position in the log: 0 or more."""
    return _number(text, 0)


def count(text: str) -> int:
    """Parse a number of things: 1 or more."""
    return _number(text, 1)


def host(text: str) -> str:
    """Parse --host. An empty one would mean every address of the machine; it is more likely an unset variable."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; write 0.0.0.0 for all addresses, or leave the option out")
    return text.strip()


def _number(text: str, least: int) -> int:
    number = int(text)
    if not least <= number <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text} must be from {least} to {LARGEST}")
    return number
