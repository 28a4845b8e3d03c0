"""The server as a process: found, started, waited for, stopped."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from headwater.postgres.embedded.errors import EmbeddedError
from headwater.postgres.embedded.home import PORT, Home

LOOK_AGAIN_SECONDS = 0.02


@dataclass(frozen=True)
class Postmaster:
    """A living server, as its postmaster.pid describes it."""

    pid: int
    port: int
    socket: Path
    status: str  # "starting", "ready", "stopping"


def bring_up(home: Home, arguments: Sequence[str], deadline: float) -> Postmaster:
    # absent: spawn · starting, recovering or stopping: wait · ready: done · spawned and dead: give up, but for one
    # case: after a crash the last processes of the old server may hold its shared memory a moment longer; spawn again.
    spawned: int | None = None
    seen = 0
    while time.monotonic() < deadline:
        found = postmaster(home.cluster)
        if found is not None:
            if found.status == "ready" and answers(home.binaries, found):
                return found
        elif spawned is None:
            clear_away(home)
            seen = len(read(home.log))
            spawned = spawn(home, arguments)
        elif is_dead(spawned):
            said = read(home.log)[seen:]
            if "is still in use" not in said:
                raise EmbeddedError(f"the embedded PostgreSQL in {home.cluster} did not start:\n{tail(said)}")
            spawned = None
        time.sleep(LOOK_AGAIN_SECONDS)  # a server tells of its state by its files and its socket, which ring nobody
    said = tail(read(home.log)[seen:])
    raise EmbeddedError(f"the embedded PostgreSQL in {home.cluster} did not get ready in time:\n{said}")


def spawn(home: Home, arguments: Sequence[str]) -> int:
    """The server as a grandchild, so that it is nobody's zombie when it dies and outlives us when we do.

    Not by pg_ctl, which puts its paths and options together as one line for a shell.
    """
    in_background = '"$@" >>"$0" 2>&1 & echo $!'
    shell = ("/bin/sh", "-c", in_background, home.log)
    done = home.account.run([*shell, home.binaries / "postgres", "-D", home.cluster, *arguments])
    if done.returncode != 0:
        raise EmbeddedError(f"the embedded PostgreSQL could not be run: {done.stderr.strip()}")
    return int(done.stdout)


def postmaster(cluster: Path) -> Postmaster | None:
    """What postmaster.pid says, while the process that it names is this cluster's server and lives."""
    lines = read(cluster / "postmaster.pid").splitlines()
    pid = pid_in(lines)
    if not pid or not is_server(pid, cluster):
        return None
    if len(lines) < 8:
        return Postmaster(pid, PORT, Path(), "starting")  # still being written
    return Postmaster(pid, int(lines[3]), Path(lines[4]), lines[7].strip())


def pid_in(lock: Sequence[str]) -> int:
    """The process that a lock file names; 0 where it is empty or spoiled, as a crash of the machine may leave it."""
    first = lock[0].strip().removeprefix("-") if lock else ""  # a minus: a single-user backend
    return int(first) if first.isdecimal() and len(first) < 10 else 0


def answers(binaries: Path, found: Postmaster) -> bool:
    """Whether it takes connections; a server that recovers does not yet."""
    command = (binaries / "pg_isready", "--quiet", "--timeout=5", "-h", found.socket, "-p", str(found.port))
    return subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode == 0


def is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def is_server(pid: int, cluster: Path) -> bool:
    """Whether the process is a PostgreSQL at work in this directory, and not a later one with the same number."""
    try:
        process = psutil.Process(pid)
        return not is_dead(pid) and process.name() == "postgres" and process.cwd() == str(cluster)
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # denied: somebody else's, and the cluster is ours
        return False


def clear_away(home: Home) -> None:
    """What a dead server left, where PostgreSQL alone would not dare: its number names another process now, or none.

    A server that holds the socket while postmaster.pid does not name it lost its data: somebody removed the directory.
    """
    for lock in (home.cluster / "postmaster.pid", home.socket_lock):
        pid = pid_in(read(lock).splitlines())
        if pid and is_server(pid, home.cluster):
            os.kill(pid, signal.SIGQUIT)
            wait_for(partial(is_dead, pid), 10, f"the process {pid}, a PostgreSQL whose data was removed,")
        if not pid or psutil.pid_exists(pid):
            lock.unlink(missing_ok=True)


def end(cluster: Path, wait: float) -> None:
    """A fast shutdown: clients are disconnected, and what is written is safe."""
    found = postmaster(cluster)
    if found is not None:
        os.kill(found.pid, signal.SIGINT)
        wait_for(lambda: postmaster(cluster) is None, wait, f"the embedded PostgreSQL in {cluster}")


def wait_for(done: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise EmbeddedError(f"{what} did not stop within {seconds:.0f} s")
        time.sleep(LOOK_AGAIN_SECONDS)  # its end rings its parent only, which is not this process


def read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def tail(text: str, lines: int = 20) -> str:
    return "\n".join(text.strip().splitlines()[-lines:]) or "(its log is empty)"
