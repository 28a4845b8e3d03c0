"""The server process: find it, start it, wait for it, stop it."""

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
from headwater.postgres.embedded.home import PORT, Home, Report

LOOK_AGAIN_SECONDS = 0.02


@dataclass(frozen=True)
class Postmaster:
    """A running server, as its postmaster.pid describes it."""

    pid: int
    port: int
    socket: Path
    status: str  # "starting", "ready", "stopping"


def bring_up(home: Home, arguments: Sequence[str], deadline: float, report: Report) -> Postmaster:
    """Return the running server, started if there is none. deadline: of `time.monotonic`.

    Raises:
        EmbeddedError: it does not start, or does not answer in time.
    """
    # absent: spawn · starting, recovering or stopping: wait · ready: return · spawned and dead: give up, with one
    # exception: after a crash the last processes of the old server may still hold its shared memory; spawn again.
    spawned: int | None = None
    seen = 0
    if postmaster(home.cluster) is None:
        report("starting PostgreSQL")
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
            output = read(home.log)[seen:]
            if "is still in use" not in output:
                raise EmbeddedError(f"the embedded PostgreSQL in {home.cluster} did not start:\n{tail(output)}")
            spawned = None
        time.sleep(LOOK_AGAIN_SECONDS)  # the state is in files and a socket, which send no signal
    output = tail(read(home.log)[seen:])
    raise EmbeddedError(f"the embedded PostgreSQL in {home.cluster} was not ready in time:\n{output}")


def spawn(home: Home, arguments: Sequence[str]) -> int:
    """Start the server as a grandchild and return its process id.

    A grandchild leaves no zombie when it ends, and outlives this process. pg_ctl is not used, because it joins its
    paths and options to one line for a shell.
    """
    in_background = '"$@" >>"$0" 2>&1 & echo $!'
    shell = ("/bin/sh", "-c", in_background, home.log)
    done = home.account.run([*shell, home.binaries / "postgres", "-D", home.cluster, *arguments])
    if done.returncode != 0:
        raise EmbeddedError(f"the embedded PostgreSQL could not be run: {done.stderr.strip()}")
    return int(done.stdout)


def postmaster(cluster: Path) -> Postmaster | None:
    """Return what postmaster.pid describes, or None if the process that it names is not this cluster's server."""
    lines = read(cluster / "postmaster.pid").splitlines()
    pid = pid_in(lines)
    if not pid or not is_server(pid, cluster):
        return None
    if len(lines) < 8:
        return Postmaster(pid, PORT, Path(), "starting")  # still being written
    return Postmaster(pid, int(lines[3]), Path(lines[4]), lines[7].strip())


def pid_in(lock: Sequence[str]) -> int:
    """Return the process id in a lock file; 0 if the file is empty or damaged, as after a crash of the machine."""
    first = lock[0].strip().removeprefix("-") if lock else ""  # a minus marks a single-user backend
    return int(first) if first.isdecimal() and len(first) < 10 else 0


def answers(binaries: Path, found: Postmaster) -> bool:
    """True if the server takes connections. One that recovers from a crash does not yet."""
    command = (binaries / "pg_isready", "--quiet", "--timeout=5", "-h", found.socket, "-p", str(found.port))
    return subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode == 0


def is_dead(pid: int) -> bool:
    """True if the process has ended, or is a zombie."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def is_server(pid: int, cluster: Path) -> bool:
    """True if the process is a PostgreSQL that runs in this directory, not a later process with the same id."""
    try:
        process = psutil.Process(pid)
        return not is_dead(pid) and process.name() == "postgres" and process.cwd() == str(cluster)
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # denied: it belongs to another user, unlike the cluster
        return False


def clear_away(home: Home) -> None:
    """Remove the lock files of a dead server. PostgreSQL keeps them if another process has its process id by now.

    Kill a server that holds the socket though postmaster.pid does not name it: its data directory was removed.
    """
    for lock in (home.cluster / "postmaster.pid", home.socket_lock):
        pid = pid_in(read(lock).splitlines())
        if pid and is_server(pid, home.cluster):
            os.kill(pid, signal.SIGQUIT)
            wait_for(partial(is_dead, pid), 10, f"the process {pid}, a PostgreSQL whose data was removed,")
        if not pid or psutil.pid_exists(pid):
            lock.unlink(missing_ok=True)


def end(cluster: Path, wait: float) -> None:
    """Shut the server down in PostgreSQL's fast mode: it disconnects its clients and loses nothing committed."""
    found = postmaster(cluster)
    if found is not None:
        os.kill(found.pid, signal.SIGINT)
        wait_for(lambda: postmaster(cluster) is None, wait, f"the embedded PostgreSQL in {cluster}")


def wait_for(done: Callable[[], bool], seconds: float, what: str) -> None:
    """Raises EmbeddedError, which names `what`, if it is not done within so many seconds."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise EmbeddedError(f"{what} did not stop within {seconds:.0f} s")
        time.sleep(LOOK_AGAIN_SECONDS)  # only a parent is notified of a process's end


def read(path: Path) -> str:
    """Return the text of a file; empty if there is no file."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def tail(text: str, lines: int = 20) -> str:
    """Return the last lines of a text."""
    return "\n".join(text.strip().splitlines()[-lines:]) or "(its log is empty)"
