"""The command line: `headwater dev | serve | work | migrate | schema`."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import sys
import tomllib
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import uvloop
from starlette.applications import Starlette

from headwater import embedded
from headwater.app import App
from headwater.config import Settings
from headwater.database import UNREACHABLE
from headwater.errors import HeadwaterError, SettingsError
from headwater.graphql.schema import print_schema
from headwater.migrate import migrate, prepare_views
from headwater.node import Node
from headwater.server import Web, health_routes, listen, run, server_of, stopping, url_of

logger = logging.getLogger("headwater.cli")


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
    return parser


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
        server = server_of(Starlette(routes=health_routes(node)), settings, farewell)
        listening = listen(settings)
        await run(
            server, listening, stop, lambda: print(f"Working. Health: {url_of(listening)}/health/ready", flush=True)
        )


async def _migrated(app: App, dsn: str) -> None:
    with _reaching():
        await migrate(dsn)
        await prepare_views(dsn, app.domain.views)


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


def _run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


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
