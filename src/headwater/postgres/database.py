"""Connections to PostgreSQL: one pool for reads, and connections outside it for parts that must not share one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import MappingProxyType, TracebackType
from typing import Any, TypeAlias
from weakref import WeakSet

import asyncpg

from headwater.clock import Clock, SystemClock
from headwater.errors import Contended, OutcomeUnknown, Overloaded, Unavailable
from headwater.postgres import array_types
from headwater.postgres.hosts import open_connection
from headwater.postgres.outage import Outage

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
"""A connection from the pool or outside it."""

LOST: tuple[type[BaseException], ...] = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InternalClientError,  # of asyncpg itself, for a connection that ended within a statement
    TimeoutError,
)
"""Raised when a connection is lost or cannot be made. The statement is not at fault and may be tried again."""

UNREACHABLE: tuple[type[BaseException], ...] = (
    *LOST,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,
)
"""Raised when a connection cannot be made: a loss, or a database that does not exist or denies the login."""

AWAY: tuple[type[BaseException], ...] = (*UNREACHABLE, asyncpg.ReadOnlySQLTransactionError)
"""Raised during an outage: a connection cannot be made, or its server has become a standby and cannot be written."""

FAILING: tuple[type[BaseException], ...] = (*UNREACHABLE, asyncpg.PostgresError)
"""Every error of PostgreSQL, reachable or not. For work that may be omitted, such as removing a worker's row."""

PASSING: tuple[type[BaseException], ...] = (
    *UNREACHABLE,  # these include a lock that is not available
    asyncpg.TransactionRollbackError,  # serialization failures and deadlocks
    asyncpg.InvalidTransactionStateError,  # such as a server that became read-only by a failover
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    Overloaded,
    Unavailable,
    OutcomeUnknown,
    Contended,
)
"""Faults that pass: the code is not their cause. They are waited out, neither counted nor parked."""

CONNECT_SECONDS = 10.0
PROBE_SECONDS = 5.0
CLOSE_SECONDS = 2.0
UNLIMITED = 86_400.0
"""Seconds for one statement after `set local statement_timeout = 0`: a pooler's connection has a limit of its own."""

SILENCE = {
    "TCP_KEEPIDLE": 10,  # seconds without a packet until the first probe
    "TCP_KEEPINTVL": 5,  # seconds between probes
    "TCP_KEEPCNT": 3,  # unanswered probes
    "TCP_USER_TIMEOUT": 25_000,  # milliseconds until sent data must be acknowledged
}
"""Options of the socket: after how long without any answer a connection counts as lost. Where the system lacks such an
option, its own timeout applies, about a quarter of an hour."""


def socket_of(connection: Any) -> socket.socket | None:
    """Return the socket of a connection."""
    return connection._transport.get_extra_info("socket")  # type: ignore[no-any-return]  # asyncpg has no public attribute for it


def _notice_silence(connection: Any) -> None:
    endpoint = socket_of(connection)
    if endpoint is None or endpoint.family not in (socket.AF_INET, socket.AF_INET6):
        return
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in SILENCE.items():
        if hasattr(socket, name):
            endpoint.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


_NO_JIT = "set jit = off"
"""Every statement is short and repeated: compiling one costs more than it saves."""

_NO_SETTING = "select 1"
"""Instead of settings where the session is not the connection's own. A pooler's connection alone shows no server."""


_OPEN: Any = open_connection  # the stubs want every option of asyncpg.connect by name


def _greeting(name: str) -> dict[str, str]:
    """Return the parameters of a new connection. PgBouncer rejects others; those are set afterwards."""
    return {"application_name": name, "timezone": "UTC"}


class Shared(asyncpg.Connection):
    """A connection to a pooler in transaction mode: each transaction may run in another session of PostgreSQL.

    It leaves nothing in a session: no setting, and no prepared statement with a name, which might be another client's.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # Else asyncpg sets `jit` in the session for `_introspect_types`.
        self._server_caps = self._server_caps._replace(jit=False)  # type: ignore[has-type]  # asyncpg's stubs lack it

    async def _get_statement(self, *call: Any, **options: Any) -> Any:
        """Prepare the unnamed statement, for cursors and COPY, too. asyncpg sends it again with each execution."""
        return await super()._get_statement(*call, **(options | {"named": ""}))  # type: ignore[misc]  # asyncpg's stubs lack it

    async def _introspect_types(self, *call: Any) -> Any:
        """Read types that are new to the connection, such as arrays, without compiling that one query for a second."""
        async with self.transaction():
            await super().execute("set local jit = off")
            return await super()._introspect_types(*call)  # type: ignore[misc]  # asyncpg's stubs lack it


class SharedByReads(Shared):
    """The same in the pool: asyncpg's timeout of a statement raises what PostgreSQL's own does."""

    async def execute(self, query: str, *args: Any, **options: Any) -> str:
        with _out_of_time():
            return await super().execute(query, *args, **options)

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        with _out_of_time():
            return await super().fetch(query, *args, **options)

    async def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        with _out_of_time():
            return await super().fetchrow(query, *args, **options)

    async def fetchval(self, query: str, *args: Any, **options: Any) -> Any:
        with _out_of_time():
            return await super().fetchval(query, *args, **options)


@contextmanager
def _out_of_time() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise asyncpg.QueryCanceledError("canceling statement due to statement timeout") from error


_OWN: Mapping[str, Any] = MappingProxyType({})
_SHARED: Mapping[str, Any] = MappingProxyType({"connection_class": Shared, "statement_cache_size": 0})
_SHARED_BY_READS: Mapping[str, Any] = MappingProxyType({**_SHARED, "connection_class": SharedByReads})


async def _as_it_is(connection: object) -> None:
    """Reset nothing when a connection returns to the pool: settings are made for one transaction only, and asyncpg
    rolls back an open one. asyncpg's own reset would add a statement to each query."""


async def make_schema(connection: Connection, name: str) -> None:
    """Create a schema if it is missing. `create schema if not exists` needs the privilege even if the schema exists."""
    if await connection.fetchval("select to_regnamespace($1) is null", name):
        await connection.execute(f"create schema if not exists {name}")


async def write_derived(connection: Connection, *, quiet: float) -> None:
    """Set up a transaction that has just begun and that writes only data that can be derived from the log again.

    It does not wait for the disk: only the log must survive a crash. PostgreSQL ends the session after `quiet` seconds
    without a statement, so that a worker that is stopped between two statements holds no lock against its successor.
    For a worker that is stopped within a statement, see `leases.end_stalled_sessions`.
    """
    await connection.execute(
        f"set local synchronous_commit = off;set local idle_in_transaction_session_timeout = {round(quiet * 1000)}"
    )


_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_INFINITE = {  # the values that asyncpg returns
    2**63 - 1: datetime.max,  # noqa: DTZ901 - without a zone
    -(2**63): datetime.min,  # noqa: DTZ901 - without a zone
}


async def take_times_by_number(connection: asyncpg.Connection) -> None:
    """Have a connection transfer each `timestamptz` as a number of microseconds. The values are the same.

    It halves the time of asyncpg's own conversion, for work that reads the whole log or writes all rows.
    """
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
    """One database: `async with Database(dsn) as database`, once a process.

    dsn: `postgresql://...`. pool_size: the largest number of connections in the pool. statement_timeout: the longest
    duration of a statement of the pool, and the longest pause between two statements of a transaction, in seconds.
    session_dsn: leads past a pooler in transaction mode; then `dsn` is the pooler's. clock: of the times in `outage`'s
    lines. greet: called with each new connection before it is used; it raises to refuse the server.
    """

    def __init__(
        self,
        dsn: str,
        *,
        pool_size: int = 10,
        statement_timeout: float = 10.0,
        session_dsn: str | None = None,
        clock: Clock | None = None,
        greet: Callable[[asyncpg.Connection], Awaitable[None]] | None = None,
    ) -> None:
        self.outage = Outage(self._probe, AWAY, clock or SystemClock())
        self._dsn = dsn
        self._session_dsn = session_dsn
        self._shared = session_dsn is not None
        self._pool_size = pool_size
        self._statement_timeout = statement_timeout
        self._pool: asyncpg.Pool | None = None
        self._greet = greet
        self._connections: WeakSet[asyncpg.Connection] = WeakSet()
        self._greeted: WeakSet[asyncpg.Connection] = WeakSet()
        self._closing: asyncio.Task[None] | None = None

    @property
    def pool(self) -> asyncpg.Pool:
        """The connections for reads. Each statement has the timeout."""
        assert self._pool is not None, "the database is not open"
        return self._pool

    async def __aenter__(self) -> Database:
        pool = await asyncpg.create_pool(
            self._dsn,
            min_size=0,  # asyncpg logs a traceback for each attempt to restore a minimum
            max_size=self._pool_size,
            timeout=CONNECT_SECONDS,
            connect=_OPEN,
            init=self._set_up_pooled,
            reset=_as_it_is,
            server_settings=_greeting("headwater"),
            command_timeout=self._statement_timeout if self._shared else None,
            **(_SHARED_BY_READS if self._shared else _OWN),
        )
        try:
            async with pool.acquire():
                pass  # raises if the database is unreachable
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
        """End every connection at once, in the pool and outside it. Calls that wait for one raise."""
        if self._pool is not None:
            self._pool.terminate()
        for connection in self._connections:
            connection.terminate()
        if self._closing is not None:
            self._closing.cancel()

    def end_greeted(self) -> None:
        """End every connection that `greet` has let pass, in the pool and outside it. Their users connect again."""
        self.outage.expect_ended()
        for connection in list(self._greeted):
            connection.terminate()

    async def connect(
        self, name: str, *, seconds: float = CONNECT_SECONDS, session: bool = False
    ) -> asyncpg.Connection:
        """Open a connection outside the pool, with the application name `headwater <name>`. The caller closes it.

        session: past a pooler in transaction mode. For LISTEN, and for transactions that last long: the pooler would
        spend one of its few sessions on each.
        """
        shared = self._shared and not session
        connection = await open_connection(
            (self._session_dsn if session else None) or self._dsn,
            timeout=seconds,
            server_settings=_greeting(f"headwater {name}"),
            **(_SHARED if shared else _OWN),
        )
        await self._set_up(connection, _NO_SETTING if shared else _NO_JIT, seconds)
        return connection

    async def connect_to_write(self, name: str, *, seconds: float = CONNECT_SECONDS) -> asyncpg.Connection:
        """Open a connection as `connect` does, to a server that can be written. It answers within `seconds`, too.

        Raises:
            asyncpg.ReadOnlySQLTransactionError: the server is a standby, or read-only.
        """
        connection = await self.connect(name, seconds=seconds)
        try:
            async with asyncio.timeout(seconds):
                if await connection.fetchval("select current_setting('transaction_read_only')::boolean"):
                    raise asyncpg.ReadOnlySQLTransactionError("the server is a standby, or read-only")
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _probe(self) -> None:
        connection = await self.connect_to_write("probe", seconds=PROBE_SECONDS)
        connection.terminate()

    async def _set_up_pooled(self, connection: asyncpg.Connection) -> None:
        limit = int(self._statement_timeout * 1000)
        limits = f"set statement_timeout = {limit}; set idle_in_transaction_session_timeout = {limit}"
        settings = f"{_NO_JIT}; {limits}" if not self._shared else _NO_SETTING
        await self._set_up(connection, settings, CONNECT_SECONDS)

    async def _set_up(self, connection: asyncpg.Connection, settings: str, seconds: float) -> None:
        self._connections.add(connection)  # the pool does not know it yet: `cut_off` ends it by this
        try:
            _notice_silence(connection)
            array_types.teach(connection)
            async with asyncio.timeout(seconds):
                await connection.execute(settings)
                if self._greet is not None:
                    await self._greet(connection)
                    self._greeted.add(connection)
        except BaseException:
            connection.terminate()  # the pool would close it, which waits for an answer
            raise
