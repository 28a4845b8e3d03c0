"""The requirements on PostgreSQL. Each start checks them, so that a missing one is named at once.

`checked` connects and checks the server: its version, and that no pooler hands each transaction to another session.
`require_to_migrate` and `require_rights` check what the role may do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

import asyncpg

from headwater.errors import HeadwaterError
from headwater.postgres import queries
from headwater.postgres.database import CONNECT_SECONDS, Connection
from headwater.postgres.hosts import open_connection

_SQL = queries.load(__file__)

MINIMUM = 15
"""The oldest version of PostgreSQL that Headwater runs on."""

ROUNDS = 3
"""Comparisons of two connections. A pooler with many idle sessions may hand out the same two by chance."""

_EVERY_PROCESS = {
    "head": "select, update",
    "epochs": "select, insert, update",
    "lost": "select, insert, update",
    "events": "select",
    "kinds": "select, insert, update, delete",
    "counted": "select, update",
    "workers": "select",
    "projections": "select, insert, update",
    "dead_letters": "select",
    "invariants": "select",
    "tombstones": "select",
    "sagas": "select",
    "processes": "select, insert, update, delete",
    "schema_version": "select",
}
_TO_DECIDE = {
    "events": "insert",
    "commands": "select, insert",
    "claims": "select, insert, delete",
    "snapshots": "select, insert, update, delete",
}
_TO_WORK = {
    "workers": "insert, update, delete",
    "dead_letters": "insert, update, delete",
    "tombstones": "insert, update, delete",
    "sagas": "insert, update, delete",
    "timers": "select, insert, update, delete",
    "schedules": "select, insert, update",
}


class Unsuitable(HeadwaterError):
    """The database cannot be used as it is. The message says what to change."""


# ---------------------------------------------------------------------------------------------------------- the server


@asynccontextmanager
async def checked(dsn: str, session_dsn: str | None = None) -> AsyncIterator[asyncpg.Connection]:
    """Yield a connection to a server that Headwater can run on.

    session_dsn: HEADWATER_LISTEN_URL; then `dsn` may be that of a pooler in transaction mode.

    Raises:
        Unsuitable: it is too old, or behind a pooler that does not keep sessions.
    """
    reached = session_dsn or dsn
    async with _opened(reached) as connection:
        require_version(connection)
        await require_sessions(connection, partial(_open, reached))
        if session_dsn is None:
            yield connection
            return
    async with _opened(dsn) as connection, connection.transaction():
        yield connection


async def _open(dsn: str) -> asyncpg.Connection:
    """Open a connection that prepares no statement by name: a pooler may give the name to another session."""
    named = {"application_name": "headwater start"}
    return await open_connection(dsn, timeout=CONNECT_SECONDS, statement_cache_size=0, server_settings=named)


@asynccontextmanager
async def _opened(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await _open(dsn)
    try:
        yield connection
    finally:
        connection.terminate()


def require_version(connection: asyncpg.Connection, minimum: int = MINIMUM) -> None:
    """Check that PostgreSQL is not older than the minimum."""
    found = connection.get_server_version()
    if found.major < minimum:
        raise Unsuitable(
            f"PostgreSQL {found.major}.{found.minor} is too old: Headwater needs version {minimum} or newer; upgrade "
            "the server, or let DATABASE_URL name another"
        )


async def require_sessions(
    connection: asyncpg.Connection, connect: Callable[[], Awaitable[asyncpg.Connection]]
) -> None:
    """Check that a connection keeps its session: that no pooler hands each transaction to any session that is free.

    connect: opens another connection to the same address.
    """
    if connection.get_server_pid() == await _backend(connection):
        return  # the session is the server's own: nothing is in between
    other = await connect()
    try:
        if await _share_sessions(connection, other):
            raise Unsuitable(
                "the connection goes through a pooler that hands each transaction to another session (PgBouncer's "
                "pool_mode = transaction): LISTEN and settings would be lost; let HEADWATER_LISTEN_URL name "
                "PostgreSQL itself"
            )
    finally:
        other.terminate()


async def _share_sessions(one: asyncpg.Connection, other: asyncpg.Connection) -> bool:
    """True if a connection changes its session, or if two open connections have the same one."""
    of_one, of_other = set[int](), set[int]()
    for _ in range(ROUNDS):
        of_one.add(await _backend(one))
        async with other.transaction():  # it keeps its session meanwhile, so that a pooler must give `one` another
            of_other.add(await _fetch_backend(other))
            if of_one & of_other:
                return True
            of_one.add(await _backend(one))
    return len(of_one) > 1 or len(of_other) > 1


async def _backend(connection: asyncpg.Connection) -> int:
    async with connection.transaction():  # the driver sends a query in two steps, which have to reach one session
        return await _fetch_backend(connection)


async def _fetch_backend(connection: asyncpg.Connection) -> int:
    pid: int = await connection.fetchval(_SQL["backend"])
    return pid


# ---------------------------------------------------------------------------------------------------------- the rights


async def require_to_migrate(connection: Connection, schemas: Sequence[str]) -> None:
    """Check that the role may create tables in schemas, and the schemas that do not exist.

    Raises:
        Unsuitable: it may not.
    """
    refused = await connection.fetch(_SQL["schemas_to_create"], schemas)
    if refused:
        role = refused[0]["role"]
        statements = "; ".join(f"create schema {row['name']} authorization {role}" for row in refused)
        raise Unsuitable(
            f"the role {role} may not create schemas in the database {refused[0]['database']}; as an administrator of "
            f"it, run: {statements}"
        )
    _refuse(await _missing_on_schemas(connection, schemas, ("usage", "create")))


async def require_rights(
    connection: Connection, *, decides: bool, works: bool, shown: Iterable[str], schemas: Collection[str]
) -> None:
    """Check that the role has every right that a process needs. What does not exist is left to `require_schema`.

    decides: the process writes commands to the log. works: it maintains read models. shown: the names of the SQL views
    that clients read. schemas: those of the read models' tables.

    Raises:
        Unsuitable: a right is missing; the message names each.
    """
    parts = [_EVERY_PROCESS, *([_TO_DECIDE] if decides else []), *([_TO_WORK] if works else [])]
    wanted = [("headwater", *each) for part in parts for each in _privileges(part)]
    wanted += [("read", name, "select") for name in shown]
    missing = await _missing_on_schemas(connection, ["headwater", *schemas], ("usage",))
    missing += await _missing_on_schemas(connection, [*schemas] if works else [], ("create",))
    missing += await connection.fetch(_SQL["missing_on_tables"], *map(list, zip(*wanted, strict=True)))
    missing += await connection.fetch(_SQL["missing_on_functions"])
    _refuse(missing)
    if works:
        await _require_ownership(connection)


def _privileges(rights: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    return ((table, privilege) for table, privileges in rights.items() for privilege in privileges.split(", "))


async def _missing_on_schemas(
    connection: Connection, schemas: Sequence[str], privileges: Sequence[str]
) -> list[asyncpg.Record]:
    pairs = [(schema, privilege) for schema in schemas for privilege in privileges]
    names, wanted = [name for name, _ in pairs], [privilege for _, privilege in pairs]
    return await connection.fetch(_SQL["missing_on_schemas"], names, wanted)


def _refuse(missing: Sequence[asyncpg.Record]) -> None:
    """Raise Unsuitable if rights are missing. Several on one object are one statement."""
    if not missing:
        return
    role, by_object = missing[0]["role"], dict[str, list[str]]()
    for row in missing:
        by_object.setdefault(row["object"], []).append(row["privilege"])
    grants = "; ".join(f"grant {', '.join(them)} on {on} to {role}" for on, them in by_object.items())
    raise Unsuitable(f"the role {role} lacks rights; as the owner of the tables, run: {grants}")


async def _require_ownership(connection: Connection) -> None:
    """Check that the role can replace the tables of read models."""
    rows = await connection.fetch(_SQL["not_owned"])
    if rows:
        owners = ", ".join(sorted({row["owner"] for row in rows}))
        raise Unsuitable(
            f"the role {rows[0]['role']} does not own {rows[0]['object']}, so it cannot build read models; work and "
            f"migrate as the same role, or run: grant {owners} to {rows[0]['role']}"
        )
