"""Formats the audit trail: a line of text or JSON for each event, or the tree of causes of one correlation.

A tree holds commands and, under each, the events that it wrote. A command that was caused by an event or by another
command stands under that cause. A command that wrote no event is not in the log, so it is not in the tree either.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC
from uuid import UUID

import msgspec

from headwater.cli.output import json_text
from headwater.cli.terminal import printable
from headwater.eventstore.audit_trail import Entry

LONGEST_DATA = 200
"""Characters of an event's data in a tree; the rest is cut. A saga's record is long, and the tree shows its
steps anyway."""


def line_of(entry: Entry) -> str:
    """Return one event as a line: position, time, category, stream, version, type, data and actor."""
    return printable(
        f"{entry.position:>10}  {_time(entry)}  {entry.category} {entry.stream_id} v{entry.version}  {entry.type}  "
        f"{entry.data}{_by(entry)}"
    )


def json_of(entry: Entry) -> str:
    """Return one event as a line of JSON with the field names of the GraphQL API; positions are strings, as there."""
    values = {
        "position": str(entry.position),
        "eventId": entry.event_id,
        "streamId": entry.stream_id,
        "category": entry.category,
        "version": entry.version,
        "type": entry.type,
        "schemaVersion": entry.schema_version,
        "data": msgspec.Raw(entry.data.encode()),
        "recordedAt": entry.recorded_at,
        "actor": entry.actor,
        "command": entry.command,
        "commandId": entry.command_id,
        "correlationId": entry.correlation_id,
        "causationId": entry.causation_id,
    }
    return json_text(msgspec.json.encode(values).decode())


def tree_of(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield the events of one correlation as a tree of causes, in the log's order.

    Each line is indented under its cause. Long data is cut.
    """
    commands: dict[UUID, list[Entry]] = {}
    for entry in entries:
        commands.setdefault(entry.command_id, []).append(entry)
    led_to = _led_to(entries, commands)
    caused = {command for following in led_to.values() for command in following}
    # The roots come first. What is left then can only be a ring of causes, which is shown too.
    for command in (*(each for each in commands if each not in caused), *commands):
        if command in commands:
            yield from _branch(command, commands, led_to)


def _led_to(entries: Sequence[Entry], commands: dict[UUID, list[Entry]]) -> dict[UUID, list[UUID]]:
    """Return the commands that each event and each command caused, by its id."""
    known = {entry.event_id for entry in entries} | commands.keys()
    led_to: defaultdict[UUID, list[UUID]] = defaultdict(list)
    for command, left in commands.items():
        cause = left[0].causation_id
        if cause in known and cause != command:
            assert cause is not None  # None is not in `known`
            led_to[cause].append(command)
    return led_to


def _branch(root: UUID, commands: dict[UUID, list[Entry]], led_to: dict[UUID, list[UUID]]) -> Iterator[str]:
    """Yield one command and all that it caused.

    It uses a stack, not recursion, since a saga that runs for years makes a deep tree.
    """
    waiting: list[tuple[int, UUID | Entry]] = [(0, root)]
    while waiting:
        depth, step = waiting.pop()
        if isinstance(step, Entry):
            yield f"{'  ' * depth}{_event_line(step)}"
            following: list[UUID | Entry] = [*led_to.get(step.event_id, ())]
        else:
            left = commands.pop(step, None)
            if left is None:
                continue  # it has been shown already
            yield f"{'  ' * depth}{_command_line(step, left[0])}"
            following = [*left, *led_to.get(step, ())]
        waiting.extend((depth + 1, each) for each in reversed(following))


def _command_line(command: UUID, first: Entry) -> str:
    return printable(f"{first.command or 'command'} {command}  {_time(first)}{_by(first)}")


def _event_line(entry: Entry) -> str:
    data = entry.data if len(entry.data) <= LONGEST_DATA else f"{entry.data[:LONGEST_DATA]}…"
    return printable(f"{entry.type} at {entry.position}  {entry.category} {entry.stream_id} v{entry.version}  {data}")


def _by(entry: Entry) -> str:
    return "" if entry.actor is None else f"  by {entry.actor}"


def _time(entry: Entry) -> str:
    return entry.recorded_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
