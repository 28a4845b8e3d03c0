"""Imports the app that `MODULE:NAME` names. Each failure names the module, the file and the line of the fault."""

from __future__ import annotations

import importlib
import logging
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType, TracebackType

from headwater.app import App
from headwater.errors import SettingsError

logger = logging.getLogger(__name__)

_HEADWATER = Path(__file__).parents[1]
_LIBRARIES = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]


def import_app(name: str) -> App:
    """Import the App that `module:name` names. The current folder is on the path, as with `python -m`.

    Raises:
        SettingsError: the name is malformed, the module cannot be imported, or it holds no App of that name.
    """
    module_name, _, attribute = name.partition(":")
    if not attribute or "/" in module_name or not all(module_name.split(".")):
        raise SettingsError(f"--app {name!r} must be MODULE:NAME, such as bank.main:app")
    module = imported(module_name, f"--app {name!r}")
    try:
        app = getattr(module, attribute)
    except AttributeError as error:
        raise SettingsError(
            f"--app {name!r}: {_described(module)} has no attribute {attribute!r}; {_apps_in(module)}"
        ) from error
    if not isinstance(app, App):
        raise SettingsError(
            f"--app {name!r}: {attribute} in {_described(module)} is of type {type(app).__name__}, not an App; "
            f"{_apps_in(module)}"
        )
    return app


def imported(module_name: str, argument: str) -> ModuleType:
    """Import a module. The current folder is on the path, as with `python -m`.

    argument: the argument of the command line that names the module, as messages begin with it.

    Raises:
        SettingsError: the name is malformed, or the import fails; the sentence says where the fault is.
    """
    if "/" in module_name or not all(module_name.split(".")):
        raise SettingsError(f"{argument} must name a module, such as bank.main")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        place = _place(error)
        if place is None:  # no module asked for it, so it is the app's own or its package
            raise SettingsError(
                f"{argument}: there is no module {error.name}; run the command from the folder that holds it, "
                "or correct the name"
            ) from error
        raise SettingsError(
            f"{argument}: {place} imports {error.name}, which does not exist here; install it, or correct the import"
        ) from error
    except SyntaxError as error:
        place = _shown(error.filename, error.lineno)
        raise SettingsError(f"{argument}: {place} cannot be parsed: {error.msg}; correct that line") from error
    except (Exception, SystemExit) as error:  # an import runs the app's own code, which may raise anything
        logger.debug("the import of %s failed", module_name, exc_info=True)
        raise SettingsError(
            f"{argument}: importing {module_name} fails at {_place(error) or module_name}: "
            f"{type(error).__name__}: {' '.join(str(error).split())}; correct that line, or see the traceback with "
            "HEADWATER_LOG_LEVEL=debug"
        ) from error


def _place(error: BaseException) -> str | None:
    """Return the file and line where an import failed: the last one of the app's own code, else of a library.

    None if no code but the import machinery's and Headwater's ran.
    """
    frames = _frames_after_import(error.__traceback__)
    own = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(each) for each in _LIBRARIES)]
    return _shown(frame.filename, frame.lineno) if (frame := next(reversed(own or frames), None)) else None


def _frames_after_import(trace: TracebackType | None) -> list[traceback.FrameSummary]:
    """Return the frames of a traceback, without those of Headwater and of the import machinery."""
    return [
        frame
        for frame in traceback.extract_tb(trace)
        if not frame.filename.startswith("<")
        and Path(frame.filename) != Path(importlib.__file__)
        and not Path(frame.filename).is_relative_to(_HEADWATER)
    ]


def _shown(file: str | None, line: int | None) -> str:
    """Return `mine.py, line 3`, relative to the current folder where the file is in it."""
    path = Path(file or "?")
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return str(shown) if line is None else f"{shown}, line {line}"


def _described(module: ModuleType) -> str:
    return f"{module.__name__} ({_shown(module.__file__, None)})" if module.__file__ else module.__name__


def _apps_in(module: ModuleType) -> str:
    """Return what to do when the name is wrong: the names of the Apps in the module, or how to make one."""
    names = [name for name, value in vars(module).items() if isinstance(value, App)]
    if names:
        return f"its App is {' or '.join(names)}"
    return "it holds no App; assign one, such as app = App(features=[...])"
