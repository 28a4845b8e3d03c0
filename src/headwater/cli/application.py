"""The app that a command is about: `--app MODULE:NAME`, or the one that pyproject.toml names."""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from headwater.app import App
from headwater.cli.connection import reaching
from headwater.config import Settings
from headwater.domain.read_model import View
from headwater.errors import SettingsError
from headwater.sagas.operations import Limits, limits_of
from headwater.server.node import Node


def app_option() -> argparse.ArgumentParser:
    """The parent of each command that needs the app; `load(chosen.app)` answers it."""
    option = argparse.ArgumentParser(add_help=False)
    option.add_argument(
        "--app", metavar="MODULE:NAME", help="the App to run; left out: [tool.headwater] app in pyproject.toml"
    )
    return option


def load(name: str | None) -> App:
    """The App that `module:name` names. The current folder is on the path, as with `python -m`."""
    name = name or _configured()
    if name is None:
        raise SettingsError("no app: say --app MODULE:NAME, or write [tool.headwater] app in pyproject.toml")
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise SettingsError(f"--app {name!r} must be MODULE:NAME, such as bank.main:app")
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise SettingsError(f"--app {name!r}: {error}; run from the folder that holds it") from error
    try:
        app = getattr(module, attribute)
    except AttributeError as error:
        raise SettingsError(f"--app {name!r}: {error}") from error
    if not isinstance(app, App):
        raise SettingsError(f"--app {name!r} is a {type(app).__name__}, not an App")
    return app


def limits(name: str | None) -> Limits | None:
    """When its sagas are stuck; None where no app is named, since an operator's commands need it for nothing else."""
    return limits_of(load(name).domain) if name or _configured() else None


def _configured() -> str | None:
    file = Path("pyproject.toml")
    try:
        table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:  # not TOML, or not UTF-8
        raise SettingsError(f"pyproject.toml cannot be read: {error}; mend it, or say --app MODULE:NAME") from error
    try:
        name = table.get("tool", {}).get("headwater", {}).get("app", "")
    except AttributeError:  # something else stands where a table should
        name = None
    if not isinstance(name, str):
        raise SettingsError(
            'pyproject.toml names no app as it should, which is app = "MODULE:NAME" in the table [tool.headwater]; '
            "mend it, or say --app MODULE:NAME"
        )
    return name or None


def view_named(app: App, name: str) -> View[Any]:
    try:
        return app.domain.view_named(name)
    except KeyError:
        names = ", ".join(view.name for view in app.domain.views)
        raise SettingsError(f"the app has no read model {name!r}; it has {names}") from None


@asynccontextmanager
async def node_of(app: App, settings: Settings, dsn: str, *, serve: bool, work: bool) -> AsyncIterator[Node]:
    """The app, running. Only while it starts is a database out of reach the fault of a setting.

    What is there when it has started stays, so that the garbage collector is told to pass it over: going through all of
    the app's classes and schema again and again cost a quarter of a process's time.
    """
    async with AsyncExitStack() as stack:
        with reaching():
            node = await stack.enter_async_context(Node(app, settings, dsn, serve=serve, work=work))
        gc.collect()
        gc.freeze()
        yield node
