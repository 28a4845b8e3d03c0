"""The way to PostgreSQL: one pool for reads, and connections of their own for those that must not share one."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, TypeAlias
from weakref import WeakSet

import asyncpg

from headwater.clock import Clock, SystemClock
from headwater.errors import Contended, OutcomeUnknown, Overloaded, Unavailable
from headwater.postgres.outage import Outage

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
"""A connection, of the pool or outside it."""

LOST: tuple[type[BaseException], ...] = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InternalClientError,  # asyncpg's own, of a connection that ended in the middle of something
    TimeoutError,
)
"""What is raised when a connection is lost or cannot be had: try again, the statement is not at fault."""

UNREACHABLE: tuple[type[BaseException], ...] = (
    *LOST,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,
)
"""What is raised when a connection cannot be made; beside a loss, a database that lets nobody in, or not us."""

FAILING: tuple[type[BaseException], ...] = (*UNREACHABLE, asyncpg.PostgresError)
"""Whatever PostgreSQL raises, or its absence: of what may be left undone, such as a last word."""

PASSING: tuple[type[BaseException], ...] = (
    *UNREACHABLE,  # a lock that is not to be had is of these, too
    asyncpg.TransactionRollbackError,  # serialization failures and deadlocks
    asyncpg.InvalidTransactionStateError,  # as of a server that is read-only since a failover
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    Overloaded,
    Unavailable,
    OutcomeUnknown,
    Contended,
)
"""Faults of the moment, of which the code at work is not the cause: waited out, neither counted nor parked."""

CONNECT_SECONDS = 10.0
PROBE_SECONDS = 5.0
CLOSE_SECONDS = 2.0

SILENCE = {
    "TCP_KEEPIDLE": 10,  # seconds without a word until the other side is asked whether it is there
    "TCP_KEEPINTVL": 5,  # seconds until it is asked again
    "TCP_KEEPCNT": 3,  # unanswered questions
    "TCP_USER_TIMEOUT": 25_000,  # milliseconds until what was sent must have arrived
}
"""When a network that swallows everything is taken for a lost connection. Where a system has no such option, it is left
to its own patience, a quarter of an hour or so."""


async def _notice_silence(connection: Any) -> None:
    endpoint = connection._transport.get_extra_info("socket")  # asyncpg shows it nowhere else
    if endpoint is None or endpoint.family not in (socket.AF_INET, socket.AF_INET6):
        return
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in SILENCE.items():
        if hasattr(socket, name):
            endpoint.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


_NO_JIT = "set jit = off"
"""Every statement is short and repeated; compiling one costs more than it can save."""


def _greeting(name: str) -> dict[str, str]:
    """What a connection is made with. PgBouncer lets nobody in who asks for more than these: the rest is set after."""
    return {"application_name": name, "timezone": "UTC"}


async def _as_it_is(connection: object) -> None:
    """Nothing to reset: whatever is set later is set for one transaction, and one that is left open is rolled back
    anyway. asyncpg's own way is a statement more for each that is asked."""


async def make_schema(connection: Connection, name: str) -> None:
    """Make a schema, if it is not there. `create schema if not exists` asks for the right to make it even if it is."""
    if await connection.fetchval("select to_regnamespace($1) is null", name):
        await connection.execute(f"create schema if not exists {name}")


async def write_derived(connection: Connection, *, quiet: float) -> None:
    """Of the transaction that was just begun: what it writes can be made again from the log, and only the log must
    outlive a crash. A worker that is stopped between two of its statements keeps no lock against the one that takes
    over: PostgreSQL ends the session after so many seconds of quiet. For one that is stopped within a statement, see
    `leases.end_stalled_sessions`.
    """
    await connection.execute(
        f"set local synchronous_commit = off;set local idle_in_transaction_session_timeout = {round(quiet * 1000)}"
    )


_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_INFINITE = {  # as asyncpg reads it
    2**63 - 1: datetime.max,  # noqa: DTZ901 - without a zone
    -(2**63): datetime.min,  # noqa: DTZ901 - the same
}


async def take_times_by_number(connection: asyncpg.Connection) -> None:
    """Have a connection take each `timestamptz` as its number of microseconds, for whoever reads all of a log or writes
    all its rows: asyncpg takes twice as long, by way of a time zone. What is read and written is the same."""
    await connection.set_type_codec(
        "timestamptz", schema="pg_catalog", format="tuple", encoder=_number_of, decoder=_time_of
    )


def _number_of(moment: datetime) -> tuple[int]:
    return ((moment - _EPOCH) // _MICROSECOND,)


def _time_of(number: tuple[int]) -> datetime:
    try:
        return _EPOCH + _MICROSECOND * number[0]
    except OverflowError:
        if number[0] not in _INFINITE:
            raise
        return _INFINITE[number[0]]


class Database:
    """One database. Opened once a process: `async with Database(dsn) as database`.

    dsn: `postgresql://...`. pool_size: connections for reads and projections, at most. statement_timeout: seconds that
    a statement of the pool may take, and that may pass between two of a transaction.
    """

    def __init__(
        self, dsn: str, *, pool_size: int = 10, statement_timeout: float = 10.0, clock: Clock | None = None
    ) -> None:
        self.outage = Outage(self._answer, UNREACHABLE, clock or SystemClock())
        self._dsn = dsn
        self._pool_size = pool_size
        self._statement_timeout = statement_timeout
        self._pool: asyncpg.Pool | None = None
        self._connections: WeakSet[asyncpg.Connection] = WeakSet()
        self._closing: asyncio.Task[None] | None = None

    @property
    def pool(self) -> asyncpg.Pool:
        """Connections for reads, each statement under the timeout."""
        assert self._pool is not None, "the database is not open"
        return self._pool

    async def __aenter__(self) -> Database:
        pool = await asyncpg.create_pool(
            self._dsn,
            min_size=0,  # asyncpg logs a traceback for each attempt to restore a minimum
            max_size=self._pool_size,
            timeout=CONNECT_SECONDS,
            init=self._set_up_pooled,
            reset=_as_it_is,
            server_settings=_greeting("headwater"),
        )
        try:
            async with pool.acquire():
                pass  # a database that cannot be reached shows now
        except BaseException:
            pool.terminate()
            raise
        self._pool = pool
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        closing = self._closing = asyncio.create_task(pool.close())
        await asyncio.wait([closing], timeout=CLOSE_SECONDS)
        if closing.done() and not closing.cancelled():
            closing.result()
        else:
            closing.cancel()
            pool.terminate()

    def cut_off(self) -> None:
        """End every connection now, those outside the pool as well: whoever waits for one is told."""
        if self._pool is not None:
            self._pool.terminate()
        for connection in self._connections:
            connection.terminate()
        if self._closing is not None:
            self._closing.cancel()

    async def connect(self, name: str, *, seconds: float = CONNECT_SECONDS) -> asyncpg.Connection:
        """A connection outside the pool, shown to the operator as `headwater <name>`. The caller closes it."""
        connection = await asyncpg.connect(self._dsn, timeout=seconds, server_settings=_greeting(f"headwater {name}"))
        await self._set_up(connection, _NO_JIT, seconds)
        return connection

    async def _answer(self) -> None:
        connection = await self.connect("probe", seconds=PROBE_SECONDS)
        connection.terminate()

    async def _set_up_pooled(self, connection: asyncpg.Connection) -> None:
        limit = int(self._statement_timeout * 1000)
        limits = f"set statement_timeout = {limit}; set idle_in_transaction_session_timeout = {limit}"
        await self._set_up(connection, f"{_NO_JIT}; {limits}", CONNECT_SECONDS)

    async def _set_up(self, connection: asyncpg.Connection, settings: str, seconds: float) -> None:
        self._connections.add(connection)  # the pool does not know it yet, and would not cut it off
        try:
            await _notice_silence(connection)
            await connection.execute(settings, timeout=seconds)
        except BaseException:
            connection.terminate()  # the pool would take leave of it, which waits for an answer
            raise
