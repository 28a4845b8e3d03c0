"""Finds the app that a command is about: `--app MODULE:NAME`, or the one that pyproject.toml names."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from headwater.app import App
from headwater.cli.app_import import import_app
from headwater.domain.read_model import View
from headwater.errors import SettingsError
from headwater.sagas.operations import Limits, limits_of


def load(name: str | None) -> App:
    """Import the App that `module:name` names; None stands for the one in pyproject.toml.

    Raises:
        SettingsError: no app is named, or it cannot be imported; the sentence says where the fault is.
    """
    name = name or _configured()
    if name is None:
        raise SettingsError("no app is named; add --app MODULE:NAME, or [tool.headwater] app to pyproject.toml")
    return import_app(name)


def limits(name: str | None) -> Limits | None:
    """Return after how long each saga of the app counts as stuck; None if no app is named.

    Operators' commands need the app for nothing else, so they also run without it.
    """
    return limits_of(load(name).domain) if name or _configured() else None


def _configured() -> str | None:
    file = Path("pyproject.toml")
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:  # not TOML, or not UTF-8
        raise SettingsError(f"pyproject.toml cannot be read: {error}; correct it, or add --app MODULE:NAME") from error
    try:
        name = project.get("tool", {}).get("headwater", {}).get("app", "")
    except AttributeError:  # `tool` or `tool.headwater` is no table
        name = None
    if not isinstance(name, str):
        raise SettingsError(
            'pyproject.toml does not name the app as app = "MODULE:NAME" in the table [tool.headwater]; correct it, '
            "or add --app MODULE:NAME"
        )
    return name or None


def view_named(app: App, name: str) -> View[Any]:
    """Return the view of a read model.

    Raises:
        SettingsError: the app has no read model of that name.
    """
    try:
        return app.domain.view_named(name)
    except KeyError:
        names = ", ".join(view.name for view in app.domain.views)
        raise SettingsError(f"the app has no read model {name!r}; it has {names}") from None
