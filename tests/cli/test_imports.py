"""A command imports only what it runs: starting a process takes no longer than it must."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.support.commands import ROOT, clean_environ

from headwater.cli.arguments import SERVICES, parser
from headwater.cli.commands import function_of

LIBRARIES = {
    *("alembic", "asyncpg", "broadcaster", "graphql", "prometheus_client", "sqlalchemy"),
    *("starlette", "strawberry", "uvicorn", "uvloop"),
}

SCRIPT = f"""
import sys

from headwater.cli import main
try:
    sys.exit(main())
finally:
    print("", *sorted({LIBRARIES!r} & sys.modules.keys()), file=sys.stderr)
"""


STARTED_IS_ENOUGH = """
from headwater.cli import processes

async def run(*_): ...

processes.run = run
"""


@pytest.mark.parametrize("arguments, code", [("--help", 0), ("events tail --help", 0), ("events tail --after x", 2)])
def test_help_and_the_errors_of_arguments_need_no_library(arguments: str, code: int) -> None:
    assert libraries(arguments) == (code, "")


@pytest.mark.parametrize(
    "arguments, needed",
    [
        ("psql -- -l", ""),
        ("status", "asyncpg uvloop"),
        ("check", "asyncpg uvloop"),
        ("lost", "asyncpg uvloop"),
        ("sagas list", "asyncpg uvloop"),
        ("dead-letters list", "asyncpg uvloop"),
        ("events tail", "asyncpg broadcaster uvloop"),
        ("verify", "asyncpg sqlalchemy uvloop"),
    ],
)
def test_operators_commands_need_neither_graphql_nor_a_web_server(dsn: str, arguments: str, needed: str) -> None:
    assert libraries(arguments, DATABASE_URL=dsn) == (0, needed)


@pytest.mark.parametrize(
    "command, needed",
    [
        ("work", "asyncpg broadcaster sqlalchemy starlette uvicorn uvloop"),
        ("serve", "asyncpg broadcaster graphql sqlalchemy starlette strawberry uvicorn uvloop"),
    ],
)
def test_a_worker_needs_no_graphql(dsn: str, command: str, needed: str) -> None:
    started = libraries(f"{command} --port 0", STARTED_IS_ENOUGH, DATABASE_URL=dsn)
    assert started == (0, needed)


def test_every_command_has_a_function() -> None:
    named = list(runs(parser()))
    assert all(map(callable, map(function_of, named)))
    assert set(SERVICES) < set(named)


def libraries(arguments: str, prelude: str = "", **environ: str) -> tuple[int, str]:
    """Run a command in an interpreter of its own. Returns its exit code and the libraries that it has imported."""
    run = [sys.executable, "-c", prelude + SCRIPT, *arguments.split()]
    ended = subprocess.run(run, capture_output=True, text=True, check=False, cwd=ROOT, env=clean_environ() | environ)
    return ended.returncode, ended.stderr.splitlines()[-1].strip()


def runs(declared: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the name of the function of each command."""
    for action in declared._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from runs(each)
    if run := declared.get_default("command"):
        yield run
