"""PgBouncer in transaction mode, in front of the tests' PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from tests.support.waiting import until

from headwater.postgres.embedded.account import account_for

PROGRAM = shutil.which("pgbouncer", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))

CONFIGURATION = """
[databases]
* = host={server} port={port} user={user}

[pgbouncer]
listen_addr =
listen_port = {port}
unix_socket_dir = {folder}
auth_type = any
pool_mode = transaction
default_pool_size = {sessions}
max_client_conn = 500
server_round_robin = 1
server_login_retry = 0.5
logfile = {folder}/log
"""
# With server_round_robin, each transaction of a client runs in another session if more than one is free.


@asynccontextmanager
async def pooling(dsn: str, cluster: Path, *, sessions: int) -> AsyncIterator[str]:
    """Run PgBouncer and yield its DSN of the same database.

    sessions: how many of PostgreSQL's it shares out.
    """
    assert PROGRAM is not None
    where = parse_qs(urlsplit(dsn).query)
    server, port = where["host"][0], where["port"][0]
    account = account_for(cluster)  # only this user can enter the folder of PostgreSQL's socket

    def switch() -> None:  # PgBouncer refuses to run as root
        os.setgroups([])
        os.setgid(account.gid)
        os.setuid(account.uid)

    with tempfile.TemporaryDirectory(prefix="hw-") as name:  # a socket's path has to be short
        folder = Path(name)
        if account.switch:
            for path in (folder, Path(server), Path(server) / f".s.PGSQL.{port}"):  # the server may be a test's proxy
                os.chown(path, account.uid, account.gid)
        settings = {"server": server, "port": port, "user": urlsplit(dsn).username, "folder": folder}
        file = folder / "pgbouncer.ini"
        file.write_text(CONFIGURATION.format(**settings, sessions=sessions))
        file.chmod(0o644)
        process = await asyncio.create_subprocess_exec(
            *(PROGRAM, "-q", str(file)), cwd="/", preexec_fn=switch if account.switch else None
        )
        try:
            await until(lambda: (folder / f".s.PGSQL.{port}").exists() or process.returncode is not None)
            assert process.returncode is None, (folder / "log").read_text()
            yield dsn.replace(quote(server, safe=""), quote(name, safe=""))
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
