"""The generations of a read model: each is one physical table, made from one declaration.

    building -> live -> retired (its table is dropped after a time)
            \\-> retired (given up: the declaration of this code is live already)

A changed declaration, or a rebuild, registers the next generation. A worker builds it beside the live one, then swaps
the two (`rebuild`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

import asyncpg

from headwater.consumers.checkpoint import Generation
from headwater.domain.fields import Field, fields_of
from headwater.domain.messages import Event
from headwater.domain.read_model import AnyView
from headwater.domain.value import tag_of
from headwater.errors import HeadwaterError
from headwater.postgres import queries
from headwater.postgres.database import Connection, make_schema
from headwater.postgres.hosts import open_connection
from headwater.projections import row_events
from headwater.projections.tables import (
    SCHEMA,
    add_indexes,
    add_key,
    column_type,
    columns_of,
    create_table,
    indexed_columns,
    show,
    snake_case,
)

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)

QUIET_SECONDS = 10
"""Silence after which PostgreSQL ends a transaction that holds the lock on a projection's tables."""


class Outdated(HeadwaterError):
    """This code is older than the code that declared the live generation."""


# --------------------------------------------------------------------------------------------------------- declaration


def fingerprint(view: AnyView) -> str:
    """Return a hash of the declaration: `<rows>.<events>`.

    The first part changes with the columns, the values of enums, the indexes, `version` and `history`. Then the rows
    are made again, unless the enums have only gained values. The second part changes with the kinds of events that are
    folded. Then older code must stop, since it would skip the events that it does not know. See `renew`.
    """
    return f"{rows_fingerprint(view, _enums(view))}.{kinds_of(view.events)}"


def kinds_of(events: Iterable[type[Event]]) -> str:
    """Return a hash of the names and versions of event types."""
    kinds = sorted((event.__declared__.name, event.__declared__.version) for event in events)
    return hashlib.sha256(json.dumps(kinds).encode()).hexdigest()[:8]


def rows_fingerprint(view: AnyView, enums: Mapping[str, Collection[str | int]]) -> str:
    """Return a hash of everything that the rows depend on. enums: the values that a row may hold, by column."""
    columns = [(column.name, column_type(column), column.nullable) for column in columns_of(view)]
    nested = [_shape(each) for each in view.fields if each.is_json]
    declared = [
        columns,
        view.key.names,
        indexed_columns(view),
        view.model.__declared__.version,
        enums,
        view.history,
        nested,
    ]
    return hashlib.sha256(json.dumps(declared).encode()).hexdigest()[:16]


def _shape(each: Field) -> object:
    """Return what the JSON of a field depends on, without the values of enums."""
    inside = [[tag_of(value), *map(_shape, fields_of(value))] for value in each.values]
    places = None if each.exact is None else each.exact.places
    inner = None if each.inner is None else _shape(each.inner)
    return [each.name, each.kind.name, each.optional, each.many, each.sequence.__name__, places, inner, inside]


def _enums(view: AnyView) -> dict[str, list[str | int]]:
    """Return the values of each enum, by the path of its field."""
    found: dict[str, list[str | int]] = {}

    def look(each: Field, path: str) -> None:
        if each.enum is not None:
            found[path] = sorted(member.value for member in each.enum)
        if each.inner is not None:
            look(each.inner, f"{path}[]")
        for value in each.values:
            for inside in fields_of(value):
                look(inside, f"{path}.{tag_of(value) or ''}.{inside.name}")

    for each in view.fields:
        look(each, each.name)
    return found


# -------------------------------------------------------------------------------------------------------- registering


def schemas_of(views: Sequence[AnyView]) -> list[str]:
    """Return the schemas that hold the tables of read models."""
    return [*([SCHEMA] if views else []), *([row_events.SCHEMA] if any(view.history for view in views) else [])]


async def prepare_views(dsn: str, views: Sequence[AnyView]) -> None:
    """Create the read models' tables, and register the next generation where the declaration has changed."""
    connection = await open_connection(dsn)
    try:
        for view in views:
            await prepare(connection, view)
            await renew(connection, view, insist=True)
    finally:
        await connection.close()


async def prepare(connection: Connection, view: AnyView) -> Generation:
    """Return the live generation; create its table and SQL view if there is none.

    Its fingerprint may differ from that of `view`: `renew` registers the generation that replaces it.
    """
    async with table_lock(connection, view.name):
        row = await connection.fetchrow(_SQL["live"], view.name)
        return await _create_first(connection, view) if row is None else read_generation(row)


async def renew(connection: Connection, view: AnyView, *, insist: bool = False) -> Generation | None:
    """Register the next generation if the declaration has changed. Returns None if there is nothing to build.

    If only the enums have gained values, or the kinds of events have changed, the live generation is adopted as it is:
    see `adopt`.

    A declaration that was live before belongs to older code, which a rolling deploy may still start. It builds nothing,
    unless `insist` says that this code is current. `insist` also gives up what other code is building, and starts a
    failed build again. Without `insist` a failed build stays failed: restarting a worker does not mend the code.
    """
    async with table_lock(connection, view.name):
        declaration = fingerprint(view)
        known = {row["state"]: row for row in await connection.fetch(_SQL["declared"], view.name, declaration)}
        if insist:
            await connection.execute(_SQL["give_up"], view.name, declaration)
        if "live" in known:
            return None
        building = known.get("building")
        if building is not None and building["failure"] is not None and not insist:
            logger.warning(
                "the build of generation %d of %s stays failed: %s",
                building["generation"],
                view.name,
                building["failure"],
            )
            return None
        if building is None and "retired" in known and not insist:
            logger.warning(
                "%s is declared as an earlier generation was; run `headwater migrate` with this code to make it "
                "current again",
                view.model.__name__,
            )
            return None
        if await _adopt(connection, view, declaration):
            return None
        return await _register_next(connection, view)


async def adopt(connection: Connection, view: AnyView) -> None:
    """Hand the live generation to this code, if only the enums have gained values or the kinds of events have changed.

    Older code cannot read the new values, and would skip events that it does not know, for good. So this is called
    before this code appends anything. It raises the fence, so that older code cannot commit what it has under way.
    Code whose declaration was live before is older code, and adopts nothing.
    """
    async with table_lock(connection, view.name):
        declaration = fingerprint(view)
        if not await connection.fetch(_SQL["declared"], view.name, declaration):
            await _adopt(connection, view, declaration)


async def _adopt(connection: Connection, view: AnyView, declaration: str) -> bool:
    """Return True if the live generation is now this code's."""
    live = await connection.fetchrow(_SQL["live_declaration"], view.name)
    if live is None:
        return False
    enums, live_enums = _enums(view), json.loads(live["enums"])
    live_rows = live["fingerprint"].partition(".")[0]
    if live_rows != rows_fingerprint(view, live_enums):
        return False
    if any(not set(values) <= set(enums[column]) for column, values in live_enums.items()):
        return False
    # A build of older code would replace this generation.
    given_up = await connection.fetch(_SQL["give_up_earlier"], view.name)
    await connection.execute(_SQL["adopt"], view.name, declaration, json.dumps(enums))
    await connection.execute(_SQL["ring"])
    if given_up:
        await _register_next(connection, view)
    return True


async def rebuild(connection: Connection, view: AnyView) -> Generation:
    """Register a generation though the declaration is the same. Returns the one under way if there is one that has not
    failed; a failed one is given up.

    Raises:
        Outdated: this code is older than that of the live generation.
    """
    async with table_lock(connection, view.name):
        states = {row["state"] for row in await connection.fetch(_SQL["declared"], view.name, fingerprint(view))}
        if states == {"retired"}:
            raise Outdated(
                f"{view.model.__name__} is declared as an earlier generation was, so this code is older than that of "
                "the live one. Run `headwater migrate` with this code to make it current again."
            )
        return await _register_next(connection, view)


@asynccontextmanager
async def table_lock(
    connection: Connection, name: str, *, seconds: float = 0, quiet: int = QUIET_SECONDS
) -> AsyncIterator[None]:
    """A transaction that holds the lock on a projection's tables: one process at a time creates, swaps or drops them.

    seconds: how long it waits for each lock; 0 waits without limit. quiet: seconds of silence after which PostgreSQL
    ends the transaction, so that a process that is stopped in the middle does not keep others out.

    Raises:
        asyncpg.LockNotAvailableError: a lock was not free in time.
    """
    async with connection.transaction():
        await connection.execute(
            f"set local lock_timeout = {round(seconds * 1000)};"
            f"set local idle_in_transaction_session_timeout = '{quiet}s'"
        )
        await connection.execute(_SQL["lock"], name)
        yield


async def _create_first(connection: Connection, view: AnyView) -> Generation:
    await make_schema(connection, SCHEMA)
    generation = await connection.fetchval(_SQL["next_generation"], view.name)
    first = await _register(connection, view, generation, "live")
    await add_key(connection, view, first.table)
    await add_indexes(connection, view, first.table)
    await show(connection, view, first.table)
    return first


async def _register_next(connection: Connection, view: AnyView) -> Generation:
    declaration = fingerprint(view)
    await connection.execute(_SQL["give_up_failed"], view.name, declaration)
    row = await connection.fetchrow(_SQL["building"], view.name, declaration)
    if row is not None:
        return read_generation(row)
    generation = await connection.fetchval(_SQL["next_generation"], view.name)
    await connection.execute(_SQL["ring"])
    return await _register(connection, view, generation, "building")


async def _register(connection: Connection, view: AnyView, generation: int, state: str) -> Generation:
    table = f"{snake_case(view.name)}_{generation}"
    await create_table(connection, view, table)
    declaration = fingerprint(view)
    version, enums = view.model.__declared__.version, json.dumps(_enums(view))
    await connection.execute(_SQL["register"], view.name, generation, version, declaration, table, state, enums)
    return Generation(number=generation, table=table, position=0, fence=0, fingerprint=declaration)


def read_generation(row: asyncpg.Record) -> Generation:
    """Return the generation of a row of `headwater.projections`."""
    return Generation(
        number=row["generation"],
        table=row["table_name"],
        position=row["position"],
        fence=row["fence"],
        fingerprint=row["fingerprint"],
    )
