"""`headwater new NAME`: writes an app with one feature, its tests, and what runs it."""

from __future__ import annotations

import argparse
import keyword
import re
import sys
from importlib.metadata import version
from pathlib import Path

from headwater.config import Settings
from headwater.errors import SettingsError

TEMPLATE = Path(__file__).parent / "new_app"

_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
_TAKEN = {"headwater", "tests", *sys.stdlib_module_names}


def run(chosen: argparse.Namespace, settings: Settings) -> None:
    folder = new_app(chosen.name, Path.cwd())
    print(f"{folder.name} is made. Next:\n\n  cd {folder.name}")
    print("  make dev      # http://127.0.0.1:8000/graphql\n  make test")


def new_app(name: str, within: Path) -> Path:
    """Write the app into a new folder of this name. Returns the folder.

    Raises:
        SettingsError: the name cannot be that of a package, or the folder exists.
    """
    package = name.replace("-", "_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(package) or package in _TAKEN:
        raise SettingsError(
            f"{name!r} cannot be the name of an app: use lower-case letters, digits and hyphens, and no name of "
            "Python's own or of Headwater"
        )
    folder = within / name
    if folder.exists():
        raise SettingsError(f"{folder} exists; choose another name, or remove it")
    # Names that would hide files from git and from Docker while they are a template.
    renamed = {"package": package, "dot-gitignore": ".gitignore", "dot-dockerignore": ".dockerignore"}
    words = {"NAME": name, "PACKAGE": package, "VERSION": version("headwater")}
    for source in sorted(TEMPLATE.rglob("*.in")):
        path = source.relative_to(TEMPLATE).with_suffix("")
        target = folder.joinpath(*(renamed.get(each, each) for each in path.parts))
        target.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text(encoding="utf-8")
        target.write_text(re.sub(r"\b(NAME|PACKAGE|VERSION)\b", lambda found: words[found[0]], text), encoding="utf-8")
    return folder
