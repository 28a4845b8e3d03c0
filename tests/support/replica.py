"""Two PostgreSQL clusters: a primary, and a streaming replica of it that can be promoted."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from tests.support.waiting import until

from headwater.postgres import embedded
from headwater.postgres.embedded import EmbeddedPostgres
from headwater.postgres.embedded.account import account_for
from headwater.postgres.embedded.postmaster import postmaster

PRIMARY = {"wal_level": "replica", "max_wal_senders": "4", "full_page_writes": "off", "max_connections": "60"}
STANDBY = {**PRIMARY, "hot_standby": "on", "fsync": "off"}


@dataclass
class Pair:
    """A primary and its replica. Replication is asynchronous, so that the replica may lack what was acknowledged."""

    primary: EmbeddedPostgres
    replica: EmbeddedPostgres
    database: str

    @property
    def primary_dsn(self) -> str:
        return self.primary.dsn(self.database)

    @property
    def replica_dsn(self) -> str:
        return self.replica.dsn(self.database)

    async def replicate(self) -> None:
        """Wait until the replica has everything that the primary has."""
        written = await _fetch(self.primary.dsn(), "select pg_current_wal_lsn()::text")
        replayed = "select pg_last_wal_replay_lsn() >= $1::text::pg_lsn"
        await until(lambda: _fetch(self.replica.dsn(), replayed, written))

    async def cut_replication(self) -> None:
        """Stop the replica from receiving anything more."""
        await _fetch(self.replica.dsn(), "alter system set primary_conninfo = ''")
        await _fetch(self.replica.dsn(), "select pg_reload_conf()")
        await until(lambda: _fetch(self.replica.dsn(), "select count(*) = 0 from pg_stat_wal_receiver"))

    async def promote(self) -> None:
        """Make the replica a primary."""
        assert await _fetch(self.replica.dsn(), "select pg_promote(true, 60)")

    def kill_primary(self) -> None:
        """End the primary at once, as a crash of its machine does."""
        found = postmaster(self.primary.cluster)
        assert found is not None
        os.kill(found.pid, signal.SIGQUIT)

    async def replace_primary(self, stack: AsyncExitStack, within: Path | None = None) -> None:
        """Let the promoted replica be the primary, with a new replica of its own."""
        self.primary = self.replica
        self.replica = _replica_of(self.primary, stack, within)


async def _fetch(dsn: str, statement: str, *values: object) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement, *values)
    finally:
        await connection.close()


@asynccontextmanager
async def running_pair(database: str, *, within: Path | None = None) -> AsyncIterator[Pair]:
    """Run a primary with an empty database, and a replica of it, until the context is left."""
    async with AsyncExitStack() as stack:
        primary = stack.enter_context(embedded.temporary(options=PRIMARY, within=within))
        await _fetch(primary.dsn(), f"create database {database}")
        yield Pair(primary, _replica_of(primary, stack, within), database)


def _replica_of(primary: EmbeddedPostgres, stack: AsyncExitStack, within: Path | None) -> EmbeddedPostgres:
    data = Path(tempfile.mkdtemp(prefix="headwater-replica-", dir=within)).resolve()
    stack.callback(shutil.rmtree, data)
    data.chmod(0o711)
    _copy(primary, data)
    replica = embedded.start(data, options=STANDBY)
    stack.callback(replica.stop)
    return replica


def _copy(primary: EmbeddedPostgres, data: Path) -> None:
    account = account_for(primary.cluster)
    account.make(data / "postgres")
    server = ("-h", primary.socket, "-p", str(primary.port), "-U", "postgres")
    into = ("-D", data / "postgres", "--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync")
    done = account.run([primary.binaries / "pg_basebackup", *server, *into])
    assert done.returncode == 0, done.stderr
