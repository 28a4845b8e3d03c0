"""The command line: `headwater dev | serve | work | migrate | schema`."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import sys
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import msgspec
import uvloop
from starlette.applications import Starlette

from headwater import embedded
from headwater.app import App
from headwater.check import Stored, check, complaint
from headwater.codec import Codec
from headwater.config import Settings
from headwater.database import UNREACHABLE, Database
from headwater.deadletters import Filter as LetterFilter
from headwater.deadletters import Parked, discard, listed, retry
from headwater.doorbell import Doorbell, PostgresBell
from headwater.errors import HeadwaterError, SettingsError
from headwater.follow import follow
from headwater.graphql.schema import print_schema
from headwater.history import has_history
from headwater.log import Log
from headwater.migrate import migrate, prepare_views, require_schema
from headwater.narrate import json_of, line_of, tree_of
from headwater.node import Node, register_units
from headwater.positions import Positions
from headwater.server import Web, health_routes, listen, metrics_route, run, server_of, stopping, url_of
from headwater.status import aligned, status
from headwater.supervisor import Supervisor
from headwater.tables import prepare, rebuild
from headwater.trail import Entry, Trail, Wanted
from headwater.verify import Report, Verifier
from headwater.view import View

logger = logging.getLogger("headwater.cli")

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, or 1 with a sentence on standard error."""
    chosen = _parser().parse_args(arguments)
    try:
        settings = _settings(chosen)
        logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        # They narrate each start and each socket; what matters of it is said by the command.
        for name in ("alembic", "uvicorn"):
            logging.getLogger(name).setLevel(logging.WARNING)
        return chosen.command(chosen, settings) or 0
    except HeadwaterError as error:
        print(f"headwater: {error}", file=sys.stderr)
    except (OSError, asyncpg.PostgresError) as error:
        print(f"headwater: {type(error).__name__}: {error}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headwater", description="Event sourcing for Python on PostgreSQL, served live over GraphQL."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    app = argparse.ArgumentParser(add_help=False)
    app.add_argument(
        "--app", metavar="MODULE:NAME", help="the App to run; left out: [tool.headwater] app in pyproject.toml"
    )
    address = argparse.ArgumentParser(add_help=False)
    address.add_argument("--host", help="the address to listen on; left out: HEADWATER_HOST")
    address.add_argument("--port", type=int, help="the port to listen on; left out: HEADWATER_PORT")

    for name, command, parents, text in (
        (
            "dev",
            _dev,
            [app, address],
            "everything in one process, on a PostgreSQL of its own unless DATABASE_URL is set",
        ),
        ("serve", _serve, [app, address], "the API: commands, queries, subscriptions"),
        ("work", _work, [app, address], "the read models; listens for health checks only"),
        ("migrate", _migrate, [app], "bring the database's schema up to date"),
        ("schema", _schema, [app], "print the GraphQL schema"),
        ("check", _check, [app], "prove that every kind of event in the log can be read by the app"),
    ):
        each = commands.add_parser(name, parents=parents, help=text, description=text)
        each.set_defaults(command=command)
        if name == "schema":
            each.add_argument(
                "--check",
                metavar="FILE",
                nargs="?",
                const="schema.graphql",
                help="print nothing, and fail when FILE (schema.graphql) holds another schema",
            )
    text = "where each projection stands, who keeps it, and what is parked"
    each = commands.add_parser("status", help=text, description=text)
    each.add_argument("--json", action="store_true", help="one JSON object")
    each.set_defaults(command=_status)
    text = "events that a fold failed on: list, show, retry, discard"
    _dead_letter_parsers(commands.add_parser("dead-letters", help=text, description=text))
    _proof_parsers(commands, app)
    _events_parsers(commands.add_parser("events", help="the audit trail: tail, trace", description="The audit trail."))
    return parser


def _proof_parsers(commands: Any, app: argparse.ArgumentParser) -> None:
    text = "make a read model's rows again from the log, beside those that are live, and swap"
    each = commands.add_parser("rebuild", parents=[app], help=text, description=text)
    each.add_argument("name", metavar="NAME", help="the read model, as in GraphQL")
    each.set_defaults(command=_rebuild)
    text = "fold rows again from the log and compare them with what is stored"
    each = commands.add_parser("verify", parents=[app], help=text, description=text)
    each.add_argument("name", metavar="NAME", nargs="?", help="the read model, as in GraphQL; left out: each of them")
    how_many = each.add_mutually_exclusive_group()
    how_many.add_argument("--sample", type=int, default=1000, metavar="N", help="so many rows by chance (1000)")
    how_many.add_argument("--all", action="store_true", help="every row")
    each.set_defaults(command=_verify)


def _events_parsers(events: argparse.ArgumentParser) -> None:
    commands = events.add_subparsers(required=True, metavar="COMMAND")
    text = "print the last events, or those after a position"
    tail = commands.add_parser("tail", help=text, description=text)
    tail.add_argument("--follow", action="store_true", help="go on with each event that comes")
    tail.add_argument("--after", type=int, metavar="P", help="start after this position; left out: the last 20 events")
    tail.add_argument("--category", metavar="C", help="events of this category only")
    tail.add_argument("--type", dest="types", action="append", metavar="T", help="of this type only; may be repeated")
    tail.add_argument("--stream", type=UUID, metavar="ID", help="of this stream only")
    tail.add_argument("--json", action="store_true", help="one line of JSON an event")
    tail.set_defaults(command=_tail)
    text = "print what a request led to, as a tree of commands and events"
    trace = commands.add_parser("trace", help=text, description=text)
    trace.add_argument("correlation_id", type=UUID, metavar="CORRELATION_ID")
    trace.set_defaults(command=_trace)


def _dead_letter_parsers(letters: argparse.ArgumentParser) -> None:
    commands = letters.add_subparsers(required=True, metavar="COMMAND")
    some = argparse.ArgumentParser(add_help=False)
    some.add_argument("--projection", metavar="NAME", help="of this read model only")
    some.add_argument("--key", type=UUID, metavar="ID", help="of this key only")
    some.add_argument("--position", type=int, metavar="P", help="the event at this position only")
    for name, command, text, everything in (
        ("list", _list_letters, "print the parked keys, with the event that each waits for", "each event behind, too"),
        ("show", _show_letters, "print events that failed, with their data and the error", "each event behind, too"),
        ("retry", _retry_letters, "have keys tried again now, in order, by the worker that keeps them", None),
        (
            "discard",
            _discard_letters,
            "have the event that failed passed over, and the rest of its key tried",
            "all events that wait for the key now",
        ),
    ):
        each = commands.add_parser(name, parents=[some], help=text, description=text)
        if everything is not None:
            each.add_argument("--all", action="store_true", help=everything)
        each.set_defaults(command=command)


def _settings(chosen: argparse.Namespace) -> Settings:
    given = {name: value for name in ("host", "port") if (value := getattr(chosen, name, None)) is not None}
    settings = msgspec.structs.replace(Settings.from_environment(), **given)
    if not 0 <= settings.port <= 65535:
        raise SettingsError(f"--port {settings.port} is no port; use one from 1 to 65535")
    return settings


# ------------------------------------------------------------------------------------------------------------ commands


def _dev(chosen: argparse.Namespace, settings: Settings) -> None:
    app = _load(chosen.app)
    with _database(settings) as dsn:
        _run(_serve_node(app, settings, dsn, work=True))


def _serve(chosen: argparse.Namespace, settings: Settings) -> None:
    _run(_serve_node(_load(chosen.app), settings, _dsn(settings), work=False))


def _work(chosen: argparse.Namespace, settings: Settings) -> None:
    _run(_work_node(_load(chosen.app), settings, _dsn(settings)))


def _migrate(chosen: argparse.Namespace, settings: Settings) -> None:
    app = _load(chosen.app)
    _run(_migrated(app, _dsn(settings)))
    print("The database is up to date.")


def _schema(chosen: argparse.Namespace, settings: Settings) -> int:
    printed = print_schema(_load(chosen.app).schema)
    if chosen.check is None:
        sys.stdout.write(printed)
        return 0
    held = Path(chosen.check)
    if held.is_file() and held.read_text(encoding="utf-8") == printed:
        return 0
    print(
        f"headwater: {held} holds another schema than the app; write it with `headwater schema > {held}`",
        file=sys.stderr,
    )
    return 1


def _check(chosen: argparse.Namespace, settings: Settings) -> int:
    kinds = _run(_checked(_load(chosen.app), _dsn(settings)))
    unreadable = [kind for kind in kinds if kind.unreadable is not None]
    if unreadable:
        print(f"headwater: {complaint(unreadable)}", file=sys.stderr)
        return 1
    print(f"The app reads all that the log holds: {sum(k.count for k in kinds):,} events of {len(kinds)} kinds.")
    for kind in kinds:
        print(f"  {kind}")
    return 0


def _rebuild(chosen: argparse.Namespace, settings: Settings) -> None:
    app = _load(chosen.app)
    position = _run(_rebuilt(app, settings, _dsn(settings), _view_named(app, chosen.name)))
    print(f"{chosen.name} is live with its new rows, from position {position:,} on.")


def _verify(chosen: argparse.Namespace, settings: Settings) -> int:
    if chosen.sample < 1:
        raise SettingsError(f"--sample {chosen.sample} must be at least 1")
    app = _load(chosen.app)
    views = app.domain.views if chosen.name is None else [_view_named(app, chosen.name)]
    reports = _run(_verified(app, _dsn(settings), views, None if chosen.all else chosen.sample))
    for report in reports:
        for line in report.lines():
            print(line)
    return 1 if any(report.differences for report in reports) else 0


def _view_named(app: App, name: str) -> View[Any]:
    try:
        return app.domain.view_named(name)
    except KeyError:
        names = ", ".join(view.name for view in app.domain.views)
        raise SettingsError(f"the app has no read model {name!r}; it has {names}") from None


def _tail(chosen: argparse.Namespace, settings: Settings) -> None:
    with _leaving_the_pipe():
        _run(_print_tail(chosen, settings, _dsn(settings)))


def _trace(chosen: argparse.Namespace, settings: Settings) -> int:
    with _leaving_the_pipe():
        entries = _run(_correlated(chosen.correlation_id, settings, _dsn(settings)))
        if not entries:
            print(f"headwater: the log holds nothing of correlation {chosen.correlation_id}", file=sys.stderr)
            return 1
        for line in tree_of(entries):
            print(line)
    return 0


def _status(chosen: argparse.Namespace, settings: Settings) -> None:
    now = _run(_connected(_dsn(settings), status))
    print(now.as_json() if chosen.json else now.as_text())


MOST_LETTERS = 1_000
"""Dead letters that are printed at once."""


def _list_letters(chosen: argparse.Namespace, settings: Settings) -> None:
    letters = _listed(chosen, settings)
    if not letters:
        print("No dead letters.")
        return
    rows = [
        (
            letter.projection,
            letter.key,
            letter.position,
            letter.type,
            letter.attempts,
            letter.waiting,
            f"{letter.parked_at:%Y-%m-%d %H:%M:%S}",
            f"{letter.next_attempt_at:%H:%M:%S}" if letter.next_attempt_at else "",
            (letter.error or "waits behind the one before").splitlines()[0],
        )
        for letter in letters
    ]
    headings = ("PROJECTION", "KEY", "POSITION", "TYPE", "ATTEMPTS", "BEHIND", "PARKED SINCE", "NEXT", "ERROR")
    print(aligned(headings, rows))
    if len(letters) == MOST_LETTERS:
        print(f"There may be more than these {MOST_LETTERS}; narrow the search by --projection or --key.")


def _show_letters(chosen: argparse.Namespace, settings: Settings) -> int:
    # One that is named is shown also where it is not the first of its key.
    chosen.all = chosen.all or chosen.position is not None
    letters = _listed(chosen, settings)
    if not letters:
        print("headwater: no dead letter is so; see `headwater dead-letters list`", file=sys.stderr)
        return 1
    print("\n\n".join(_shown(letter) for letter in letters))
    return 0


def _shown(letter: Parked) -> str:
    due = "when a person acts" if letter.next_attempt_at is None else f"{letter.next_attempt_at:%Y-%m-%d %H:%M:%S} UTC"
    return "\n".join(
        [
            f"{letter.projection} {letter.key}: {letter.type} at position {letter.position}",
            f"  recorded      {letter.recorded_at:%Y-%m-%d %H:%M:%S} UTC in stream {letter.stream_id}",
            f"  parked        {letter.parked_at:%Y-%m-%d %H:%M:%S} UTC, {letter.waiting} events of its key behind it",
            f"  attempts      {letter.attempts}, next {due if letter.error else 'after the one before'}",
            f"  data          {letter.data}",
            f"  error {letter.traceback_hash or '-':<8}".rstrip(),
            *(f"    {line}" for line in (letter.error or "none: it waits behind the one before").splitlines()),
        ]
    )


def _retry_letters(chosen: argparse.Namespace, settings: Settings) -> int:
    where = _letter_filter(chosen)
    return _marked(_run(_connected(_dsn(settings), lambda c: retry(c, where))), "key", "tried again")


def _discard_letters(chosen: argparse.Namespace, settings: Settings) -> int:
    where = _letter_filter(chosen)
    if where == LetterFilter():
        raise SettingsError("dead-letters discard: say which, by --projection, --key or --position")
    marked = _run(_connected(_dsn(settings), lambda c: discard(c, where, everything=chosen.all)))
    return _marked(marked, "event", "discarded")


def _marked(count: int, what: str, done: str) -> int:
    if not count:
        print("headwater: no dead letter is so; see `headwater dead-letters list`", file=sys.stderr)
        return 1
    print(f"{count} {what}{'' if count == 1 else 's'} will be {done} by the worker that keeps the projection.")
    return 0


def _listed(chosen: argparse.Namespace, settings: Settings) -> list[Parked]:
    where = _letter_filter(chosen)
    return _run(_connected(_dsn(settings), lambda c: listed(c, where, first_only=not chosen.all, limit=MOST_LETTERS)))


def _letter_filter(chosen: argparse.Namespace) -> LetterFilter:
    return LetterFilter(chosen.projection, chosen.key, chosen.position)


@contextmanager
def _leaving_the_pipe() -> Iterator[None]:
    """Whoever reads what is printed may go, as `head` does: that ends the command, and is no fault."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed goes nowhere


# ----------------------------------------------------------------------------------------------------------- processes


async def _serve_node(app: App, settings: Settings, dsn: str, *, work: bool) -> None:
    if work:
        await _migrated(app, dsn)
    async with stopping() as stop, _node(app, settings, dsn, serve=True, work=work) as node:
        web = Web(node)
        listening = listen(settings)
        await run(
            server_of(web.app, settings, web.farewell), listening, stop, lambda: _announce(url_of(listening), work)
        )


async def _work_node(app: App, settings: Settings, dsn: str) -> None:
    async def farewell() -> None:
        """Nobody stays connected to a worker."""

    async with stopping() as stop, _node(app, settings, dsn, serve=False, work=True) as node:
        server = server_of(Starlette(routes=[*health_routes(node), metrics_route(node)]), settings, farewell)
        listening = listen(settings)
        await run(
            server, listening, stop, lambda: print(f"Working. Health: {url_of(listening)}/health/ready", flush=True)
        )


async def _migrated(app: App, dsn: str) -> None:
    with _reaching():
        await migrate(dsn)
        await prepare_views(dsn, app.domain.views)
        async with Database(dsn, pool_size=1) as database, database.pool.acquire() as connection:
            await register_units(connection, app.domain)


async def _checked(app: App, dsn: str) -> list[Stored]:
    with _reaching():
        async with Database(dsn, pool_size=1) as database:
            await require_schema(database.pool)
            return await check(database.pool, app.domain)


async def _rebuilt(app: App, settings: Settings, dsn: str, view: View[Any]) -> int:
    """Register the next generation and follow it; as a worker for that time, when there is none."""
    async with AsyncExitStack() as stack:

        async def work() -> None:
            if not joined:
                joined.append(await stack.enter_async_context(_node(app, settings, dsn, serve=False, work=True)))

        joined: list[Node] = []
        terminal = sys.stderr.isatty()
        show = (lambda line: print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)) if terminal else logger.info

        async def forced(connection: asyncpg.Connection) -> int:
            await prepare(connection, view)
            standing = await rebuild(connection, view)
            return await follow(connection, view.name, standing.generation, show=show, alone=work)

        try:
            return await _connected(dsn, forced)
        finally:
            if terminal:
                print(file=sys.stderr)


async def _verified(app: App, dsn: str, views: Sequence[View[Any]], sample: int | None) -> list[Report]:
    with _reaching():
        async with Database(dsn, pool_size=2) as database:
            await require_schema(database.pool)
            log = Log(database.pool, app.domain.codec)
            verifiers = [Verifier(log, view, by_stream=has_history(app.domain, view)) for view in views]
            return [await verifier.live(database, sample) for verifier in verifiers]


LAST_EVENTS = 20
"""What `events tail` shows when it is not told from where."""


async def _print_tail(chosen: argparse.Namespace, settings: Settings, dsn: str) -> None:
    wanted = Wanted(stream_id=chosen.stream, category=chosen.category, types=chosen.types)
    show = json_of if chosen.json else line_of
    async with stopping() as stop, _trail(settings, dsn) as trail:
        after = await trail.head()
        if chosen.after is not None and not 0 <= chosen.after <= after:
            raise SettingsError(f"--after {chosen.after} must be a position of the log, which ends at {after}")
        if chosen.after is None:
            for entry in await trail.read(wanted, before=after + 1, limit=LAST_EVENTS, backward=True):
                print(show(entry))
        elif not chosen.follow:
            async for entry in trail.walk(wanted, chosen.after, after):
                print(show(entry))
        else:
            after = chosen.after
        if chosen.follow:
            await _until(stop, _print_following(trail, wanted, after, show))


async def _print_following(trail: Trail, wanted: Wanted, after: int, show: Callable[[Entry], str]) -> None:
    async for entry in trail.follow(wanted, after):
        print(show(entry), flush=True)


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do some work until it ends, or until told to stop."""
    working, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
    for task in (working, stopped):
        task.cancel()
    await asyncio.wait([working, stopped])
    if not working.cancelled():
        working.result()


async def _correlated(correlation_id: UUID, settings: Settings, dsn: str) -> list[Entry]:
    async with _trail(settings, dsn) as trail:
        return [entry async for entry in trail.walk(Wanted(correlation_id=correlation_id), 0, await trail.head())]


@asynccontextmanager
async def _trail(settings: Settings, dsn: str) -> AsyncIterator[Trail]:
    """The log as it is stored, with a doorbell of its own."""
    positions = Positions()
    database = Database(dsn, pool_size=2, statement_timeout=settings.statement_timeout_seconds)
    async with AsyncExitStack() as stack:
        with _reaching():
            await stack.enter_async_context(database)
        await require_schema(database.pool)
        supervisor = await stack.enter_async_context(Supervisor())
        bell = PostgresBell(database)
        supervisor.start("doorbell", Doorbell(bell, positions).run)
        supervisor.start("listener", bell.listen)
        # A trail has no events to decode: what it reads is shown as it is stored.
        yield Trail(database.pool, Log(database.pool, Codec(())), positions, poll=settings.poll_seconds)


@asynccontextmanager
async def _node(app: App, settings: Settings, dsn: str, *, serve: bool, work: bool) -> AsyncIterator[Node]:
    async with AsyncExitStack() as stack:
        with _reaching():
            node = await stack.enter_async_context(Node(app, settings, dsn, serve=serve, work=work))
        yield node


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except UNREACHABLE as error:
        raise SettingsError(
            f"DATABASE_URL: the database cannot be reached ({error}); start it, or change the setting"
        ) from error


async def _connected(dsn: str, ask: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    """Ask a migrated database something, on a connection of its own."""
    with _reaching():
        async with Database(dsn, pool_size=1) as database:
            await require_schema(database.pool)
            connection = await database.connect("command line")
            try:
                return await ask(connection)
            finally:
                await connection.close()


def _run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


@contextmanager
def _database(settings: Settings) -> Iterator[str]:
    """The database that is set, or the embedded one while this runs."""
    if settings.database_url is not None:
        yield settings.database_url
        return
    server = embedded.start(settings.data)
    try:
        yield server.dsn()
    finally:
        server.stop()


def _dsn(settings: Settings) -> str:
    if settings.database_url is None:
        raise SettingsError("DATABASE_URL is not set; give it a postgresql:// address, or use `headwater dev`")
    return settings.database_url


def _load(name: str | None) -> App:
    """The App that `module:name` names. The current folder is on the path, as with `python -m`."""
    name = name or _configured()
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise SettingsError(f"--app {name!r} must be MODULE:NAME, such as bank.main:app")
    sys.path.insert(0, "")
    try:
        app = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise SettingsError(f"--app {name!r}: {error}; run from the folder that holds it") from error
    except AttributeError as error:
        raise SettingsError(f"--app {name!r}: {error}") from error
    if not isinstance(app, App):
        raise SettingsError(f"--app {name!r} is a {type(app).__name__}, not an App")
    return app


def _configured() -> str:
    file = Path("pyproject.toml")
    table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    name = table.get("tool", {}).get("headwater", {}).get("app")
    if not isinstance(name, str):
        raise SettingsError("no app: say --app MODULE:NAME, or write [tool.headwater] app in pyproject.toml")
    return name


def _announce(url: str, everything: bool) -> None:
    lines = [
        "",
        "  Headwater is running"
        + (", with its read models." if everything else "; `headwater work` keeps its read models."),
        "",
        f"  GraphiQL       {url}/graphql          (in a browser)",
        f"  GraphQL        {url}/graphql          (HTTP POST and GET)",
        f"  Subscriptions  {url.replace('http', 'ws', 1)}/graphql            (graphql-transport-ws)",
        f"  Health         {url}/health/ready",
        "",
        "  Anyone who reaches this address may do everything: there are no permissions yet."
        if not url.startswith(("http://127.0.0.1:", "http://[::1]:"))
        else "  It listens on this machine only, since there are no permissions yet.",
        "  Ctrl-C stops it.",
        "",
    ]
    print("\n".join(lines), flush=True)
