"""The commands with their arguments, and the settings that options of the command line replace.

A command names the function that runs it. Only that of the chosen command is imported, so that help and the errors of
arguments need neither the database nor the web.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from uuid import UUID

import msgspec

from headwater.cli.commands import Commands, command, count, group, host, position
from headwater.config import Settings
from headwater.domain.saga_state import Phase
from headwater.errors import SettingsError

LAST_EVENTS = 20
"""The number of events that `events tail` prints without --after."""

LATEST_SAGAS = 50
"""The number of instances that `sagas list` prints without --limit."""

SERVICES = ("processes:serve", "processes:work")
"""Commands that run as services: they print nothing where the log is JSON, so that every line is a record."""


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="headwater", description="Event sourcing for Python on PostgreSQL, served live over GraphQL."
    )
    whole.add_argument("--version", action="version", version=f"headwater {version('headwater')}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for add in GROUPS:
        add(commands)
    return whole


def settings_of(chosen: argparse.Namespace) -> Settings:
    """Return the environment's settings, with --host and --port in place of theirs."""
    given = {name: value for name in ("host", "port") if (value := getattr(chosen, name, None)) is not None}
    settings = msgspec.structs.replace(Settings.from_environment(), **given)
    if not 0 <= settings.port <= 65535:
        raise SettingsError(f"--port {settings.port} is not a port; use 1 to 65535, or 0 for any free port")
    return settings


def _processes(commands: Commands) -> None:
    address = argparse.ArgumentParser(add_help=False)
    address.add_argument("--host", type=host, help="the address to listen on; default: HEADWATER_HOST")
    address.add_argument("--port", type=int, help="the port to listen on; default: HEADWATER_PORT")
    text = "run everything in one process, on a PostgreSQL of its own unless DATABASE_URL is set"
    dev = command(commands, "dev", "processes:dev", text, parents=[_app(), address])
    dev.add_argument(
        "--reload",
        dest="command",
        action="store_const",
        const="reload:run",
        help="start the app again when a Python file below this folder changes; the database stays",
    )
    for name, text in (
        ("serve", "serve the API: commands, queries, subscriptions"),
        ("work", "run read models, sagas, reactors and schedules; serves only health checks and metrics"),
    ):
        command(commands, name, f"processes:{name}", text, parents=[_app(), address])


def _new(commands: Commands) -> None:
    each = command(commands, "new", "new:run", "make an app with one feature, its tests, and what runs it")
    each.add_argument("name", metavar="NAME", help="of the app and of its new folder, such as ticket-shop")


def _migrate(commands: Commands) -> None:
    command(commands, "migrate", "migrate:run", "bring the database's schema up to date", parents=[_app()])


def _seed(commands: Commands) -> None:
    text = "execute the commands of a seed, on the database of `dev` unless DATABASE_URL is set"
    each = command(commands, "seed", "seed:run", text, parents=[_app()])
    each.add_argument(
        "module", metavar="MODULE", help="the module with the function `seed`, a generator of (command, actor)"
    )


def _database(commands: Commands) -> None:
    text = "open psql on DATABASE_URL, or on the database of `dev`"
    each = command(commands, "psql", "psql:run", text)
    each.add_argument(
        "arguments", nargs="*", metavar="ARGUMENT", help="of psql, after --: headwater psql -- -c 'select 1'"
    )
    text = "remove the database of `dev`, with all of its events; no process may use it"
    each = command(commands, "reset", "reset:run", text)
    each.add_argument("--yes", action="store_true", help="do not ask")


def _schema(commands: Commands) -> None:
    schema = command(commands, "schema", "schema:run", "print the GraphQL schema", parents=[_app()])
    schema.add_argument(
        "--check",
        metavar="FILE",
        nargs="?",
        const="schema.graphql",
        help="print nothing, and fail if FILE (default: schema.graphql) differs from the app's schema",
    )


def _check(commands: Commands) -> None:
    text = "prove that the app can read every kind of event in the log"
    command(commands, "check", "check:run", text, parents=[_app()])


def _status(commands: Commands) -> None:
    text = "show each projection with its lag, worker and parked keys, the sagas, and the processes"
    each = command(commands, "status", "status:run", text, parents=[_app()])
    each.add_argument("--json", action="store_true", help="one JSON object")


def _dead_letters(commands: Commands) -> None:
    letters = group(commands, "dead-letters", "events whose handling failed: list, show, retry, discard")
    some = argparse.ArgumentParser(add_help=False)
    some.add_argument("--projection", metavar="NAME", help='only of this read model, "saga NAME" or "reactor NAME"')
    some.add_argument("--key", metavar="KEY", help="only of this key, as `dead-letters list` prints it")
    some.add_argument("--position", type=position, metavar="P", help="only the event at this position")
    text = "print the parked keys of read models, sagas and reactors, with the event that each failed on"
    each = command(letters, "list", "dead_letters:run_list", text, parents=[some])
    each.add_argument("--all", action="store_true", help="also the events that wait behind it")
    text = "print failed events with their data and the error"
    each = command(letters, "show", "dead_letters:run_show", text, parents=[some])
    each.add_argument("--all", action="store_true", help="also the events that wait behind it")
    text = "retry parked keys now, in order; the worker that runs the consumer does it"
    command(letters, "retry", "dead_letters:run_retry", text, parents=[some])
    text = "skip the failed event, and retry the rest of its key"
    each = command(letters, "discard", "dead_letters:run_discard", text, parents=[some])
    each.add_argument("--all", action="store_true", help="all events of the key that wait now")


def _sagas(commands: Commands) -> None:
    sagas = group(commands, "sagas", "instances of sagas: list, show, retry, abandon")
    phases = [phase.value for phase in Phase]
    text = "print instances of sagas, the latest change first"
    each = command(sagas, "list", "sagas:run_list", text, parents=[_app()])
    each.add_argument("--saga", metavar="NAME", help="only of this saga")
    each.add_argument(
        "--status", choices=phases, metavar="S", help=f"only instances of this status: {', '.join(phases)}"
    )
    each.add_argument("--stuck", action="store_true", help="only those that take longer than their saga declares")
    each.add_argument(
        "--limit", type=count, default=LATEST_SAGAS, metavar="N", help=f"at most N instances (default: {LATEST_SAGAS})"
    )
    each.add_argument("--json", action="store_true", help="print each instance as a line of JSON")
    text = "print an instance with its state, its steps, and what it waits for"
    each = command(sagas, "show", "sagas:run_show", text, parents=[_app()])
    each.add_argument("id", type=UUID, metavar="ID", help="its id, or its key")
    each.add_argument("--json", action="store_true", help="print each instance as a line of JSON")
    text = "retry what parks an instance: an undo that was refused, or an event that its code failed on"
    each = command(sagas, "retry", "sagas:run_retry", text)
    each.add_argument("id", type=UUID, nargs="?", metavar="ID", help="its id, or its key")
    each.add_argument("--all", action="store_true", help="all parked instances")
    each.add_argument("--saga", metavar="NAME", help="with --all: only of this saga")
    text = "end an instance: no further step runs, and nothing is undone"
    each = command(sagas, "abandon", "sagas:run_abandon", text)
    each.add_argument("id", type=UUID, metavar="ID", help="its id, or its key")
    each.add_argument("--reason", required=True, metavar="TEXT", help="the reason, which is recorded in the log")


def _rebuild(commands: Commands) -> None:
    text = "rebuild a read model's rows from the log beside the live ones, then swap; or a projection's tables"
    each = command(commands, "rebuild", "rebuild:run", text, parents=[_app()])
    each.add_argument("name", metavar="NAME", help="the read model, as in GraphQL")


def _verify(commands: Commands) -> None:
    text = "fold the log again and compare the result with the stored rows; check the app's invariants"
    each = command(commands, "verify", "verify:run", text, parents=[_app()])
    each.add_argument(
        "name", metavar="NAME", nargs="?", help="a read model, as in GraphQL, or an invariant; default: all"
    )
    how_many = each.add_mutually_exclusive_group()
    how_many.add_argument(
        "--sample",
        type=count,
        default=1000,
        metavar="N",
        help="compare N random rows (default: 1000); check an invariant only if NAME is one",
    )
    how_many.add_argument("--all", action="store_true", help="compare every row, and check every invariant")


def _lost(commands: Commands) -> None:
    text = "print the epochs of the log, and the positions that it lost when it went back, as far as they are known"
    each = command(commands, "lost", "lost:run", text)
    each.add_argument("--json", action="store_true", help="one JSON object")
    text = "begin a new epoch, after a copy of the database's files was restored while no process ran"
    each = command(commands, "new-epoch", "lost:run_new_epoch", text)
    each.add_argument("--reason", metavar="TEXT", required=True, help="what happened, for `headwater lost`")


def _retire(commands: Commands) -> None:
    text = "retire a read model, a saga or a reactor that was removed from the app"
    each = command(commands, "retire", "retire:run", text, parents=[_app()])
    each.add_argument("name", metavar="NAME", help='the name in `headwater status`: Account, "saga Transfer"')


def _events(commands: Commands) -> None:
    events = group(commands, "events", "the audit trail: tail, trace", "The audit trail.")
    tail = command(events, "tail", "events:run_tail", "print the last events, or those after a position")
    tail.add_argument("--follow", action="store_true", help="keep printing new events until Ctrl-C")
    tail.add_argument(
        "--after", type=position, metavar="P", help=f"start after this position; default: the last {LAST_EVENTS}"
    )
    tail.add_argument("--category", metavar="C", help="only events of this category")
    tail.add_argument("--type", dest="types", action="append", metavar="T", help="only this type; may be repeated")
    tail.add_argument("--stream", type=UUID, metavar="ID", help="only events of this stream")
    tail.add_argument("--key", metavar="KEY", help="only events of the stream of --category with this natural key")
    tail.add_argument("--json", action="store_true", help="print each event as a line of JSON")
    text = "print what a request caused, as a tree of commands and events"
    trace = command(events, "trace", "events:run_trace", text)
    trace.add_argument("correlation_id", type=UUID, metavar="CORRELATION_ID")


def _app() -> argparse.ArgumentParser:
    """Return the parent parser of each command that needs the app, which `application.load` imports."""
    option = argparse.ArgumentParser(add_help=False)
    option.add_argument(
        "--app", metavar="MODULE:NAME", help="the App to run; default: [tool.headwater] app in pyproject.toml"
    )
    return option


GROUPS = [
    _new,
    _processes,
    _seed,
    _database,
    _migrate,
    _schema,
    _check,
    _status,
    _dead_letters,
    _sagas,
    _rebuild,
    _verify,
    _lost,
    _retire,
    _events,
]
"""The functions that add commands, in the order that `headwater --help` shows."""
