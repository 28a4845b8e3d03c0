"""`headwater events tail | trace`: prints the audit trail."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

from headwater.cli.arguments import LAST_EVENTS
from headwater.cli.connection import dsn_to_ask, session_variable
from headwater.cli.event_lines import json_of, line_of, tree_of
from headwater.cli.loop import complete, stopping, unless
from headwater.cli.output import complain
from headwater.config import Settings
from headwater.domain.row_key import text_of
from headwater.domain.serialization import Codec
from headwater.errors import SettingsError
from headwater.eventstore.audit_trail import Entry, Trail, Wanted
from headwater.eventstore.doorbell import Doorbell, PostgresBell
from headwater.eventstore.log import Log
from headwater.eventstore.positions import Positions
from headwater.ids import stream_id_of
from headwater.postgres.database import Database
from headwater.postgres.reaching import reaching
from headwater.postgres.schema_version import require_schema
from headwater.supervisor import Supervisor


def run_tail(chosen: argparse.Namespace, settings: Settings) -> None:
    complete(_print_tail(chosen, settings, dsn_to_ask(settings)))


def run_trace(chosen: argparse.Namespace, settings: Settings) -> int:
    entries = complete(_correlated(chosen.correlation_id, settings, dsn_to_ask(settings)))
    if not entries:
        return complain(f"the log holds no event with correlation id {chosen.correlation_id}; check the id")
    for line in tree_of(entries):
        print(line)
    return 0


def stream_of(chosen: argparse.Namespace) -> UUID | None:
    """Return the id of the stream that is named by its id, or by its category and natural key."""
    if chosen.key is None:
        return chosen.stream  # type: ignore[no-any-return]  # argparse made it
    if chosen.category is None or chosen.stream is not None:
        raise SettingsError("--key names a stream of a category: give --category with it, and no --stream")
    return stream_id_of(chosen.category, text_of(chosen.key))


async def _print_tail(chosen: argparse.Namespace, settings: Settings, dsn: str) -> None:
    wanted = Wanted(stream_id=stream_of(chosen), category=chosen.category, types=chosen.types)
    show = json_of if chosen.json else line_of
    async with _trail(settings, dsn) as trail:
        after = await trail.head()
        if chosen.after is not None and chosen.after > after:
            raise SettingsError(f"--after {chosen.after} must be a position of the log, which ends at {after}")
        if chosen.after is None:
            for entry in await trail.read(wanted, before=after + 1, limit=LAST_EVENTS, backward=True):
                print(show(entry))
        elif not chosen.follow:
            async for entry in trail.walk(wanted, chosen.after, after):
                print(show(entry))
        else:
            after = chosen.after
        if chosen.follow:
            async with stopping() as stop:
                await unless(stop, _print_following(trail, wanted, after, show))


async def _print_following(trail: Trail, wanted: Wanted, after: int, show: Callable[[Entry], str]) -> None:
    async for entry, _ in trail.follow(wanted, after):
        print(show(entry), flush=True)


async def _correlated(correlation_id: UUID, settings: Settings, dsn: str) -> list[Entry]:
    async with _trail(settings, dsn) as trail:
        return [entry async for entry in trail.walk(Wanted(correlation_id=correlation_id), 0, await trail.head())]


@asynccontextmanager
async def _trail(settings: Settings, dsn: str) -> AsyncIterator[Trail]:
    """Open the log for reading, with a doorbell of its own for `--follow`."""
    positions = Positions()
    database = Database(
        dsn,
        pool_size=2,
        statement_timeout=settings.statement_timeout_seconds,
        greet=positions.epochs.enter,
    )
    positions.epochs.on_change(lambda _: database.end_greeted())
    async with AsyncExitStack() as stack:
        with reaching(session_variable(settings)):
            await stack.enter_async_context(database)
        await require_schema(database.pool)
        supervisor = await stack.enter_async_context(Supervisor())
        bell = PostgresBell(database)
        supervisor.start("doorbell", Doorbell(bell, positions).run)
        supervisor.start("listener", bell.listen)
        # The codec knows no event: entries are printed as they are stored, without decoding.
        yield Trail(database.pool, Log(database.pool, Codec(())), positions, poll=settings.poll_seconds)
