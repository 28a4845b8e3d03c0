"""`headwater sagas list | show | retry | abandon`: shows saga instances, and resumes or ends parked ones."""

from __future__ import annotations

import argparse
import getpass
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

import msgspec

from headwater.cli.application import limits
from headwater.cli.connection import ask
from headwater.cli.output import complain, json_text
from headwater.cli.terminal import aligned, printable
from headwater.config import Settings
from headwater.domain.graphql_names import field_name
from headwater.domain.saga_state import Phase
from headwater.errors import SettingsError
from headwater.sagas.instances import StoredStep
from headwater.sagas.operations import Instance, InstanceFilter, abandon, listed, retry, retry_all, shown

HEADINGS = ("SAGA", "KEY", "STATUS", "SINCE", "WAITING FOR", "REASON")


def run_list(chosen: argparse.Namespace, settings: Settings) -> None:
    known = limits(chosen.app)
    if chosen.stuck and known is None:
        raise SettingsError("--stuck needs the app, which declares when its sagas are stuck; add --app MODULE:NAME")
    where = InstanceFilter(chosen.saga, chosen.status and Phase(chosen.status), stuck=chosen.stuck or None)
    found = ask(settings, lambda c: listed(c, where, known or {}, limit=chosen.limit + 1))
    some = found[: chosen.limit]
    if chosen.json:
        _print_json(some)
        return
    print(aligned(HEADINGS, [_row(each) for each in some]) if some else "No sagas.")
    if len(found) > len(some):
        print(f"There are more than these {chosen.limit}; narrow the search, or raise --limit.")


def _row(found: Instance) -> tuple[object, ...]:
    return (
        found.saga,
        found.key,
        _status(found),
        f"{found.since:%Y-%m-%d %H:%M:%S}",
        found.waiting_for or "",
        _line(found.reason or ""),
    )


def _status(found: Instance) -> str:
    return f"{found.status.value}, stuck" if found.stuck else found.status.value


def run_show(chosen: argparse.Namespace, settings: Settings) -> int:
    known = limits(chosen.app) or {}
    found = ask(settings, lambda c: shown(c, chosen.id, known))
    if not found:
        return complain(f"no saga instance has the id or key {chosen.id}; see `headwater sagas list`")
    if chosen.json:
        _print_json(found)
    else:
        print("\n\n".join(_shown(each) for each in found))
    return 0


def _shown(found: Instance) -> str:
    lines = [
        f"{found.saga} {found.key}: {_status(found)}",
        f"  id            {found.stream_id}, version {found.version}, position {found.position}",
        f"  started       {_time(found.started_at)}",
        f"  since         {_time(found.since)}",
    ]
    if found.finished_at is not None:
        lines.append(f"  finished      {_time(found.finished_at)}")
    if found.waiting_for is not None:
        lines.append(f"  waiting for   {found.waiting_for}")
    if found.reason is not None:
        lines.append(f"  reason        {_line(found.reason)}")
    lines += [f"  correlation   {found.correlation_id}", f"  state         {_line(found.state)}", "  steps"]
    return "\n".join([*lines, *_steps(found)])


def _steps(found: Instance) -> list[str]:
    steps = msgspec.json.decode(found.steps, type=list[StoredStep])
    if not steps:
        return ["    none"]
    rows = [
        (
            each.number,
            each.state.value.replace("_", " "),
            each.command + _undoes(each),
            "" if each.since is None else _time(each.since),
            each.reason or "",
            _line(bytes(each.input).decode()),
        )
        for each in steps
    ]
    return [f"    {line}" for line in aligned(("", "STATE", "COMMAND", "ISSUED", "REASON", "INPUT"), rows).splitlines()]


def _undoes(step: StoredStep) -> str:
    if step.undoes is None:
        return ""
    return ", an undo" if step.undoes == step.number else f", undoes {step.undoes}"


def _print_json(some: Sequence[Instance]) -> None:
    """Print each instance as a line of JSON with the field names of GraphQL; positions are strings, as there."""
    for each in some:
        values = asdict(each)
        words = {field_name(name): value for name, value in values.items() if name not in ("stream_id", "saga")}
        raw = {name: msgspec.Raw(values[name].encode()) for name in ("state", "steps")}
        head = {"id": each.stream_id, "name": each.saga}
        print(json_text(msgspec.json.encode(head | words | raw | {"position": str(each.position)}).decode()))


def run_retry(chosen: argparse.Namespace, settings: Settings) -> int:
    if (chosen.id is None) is not chosen.all:
        raise SettingsError("sagas retry: give either an ID or --all")
    if chosen.saga is not None and not chosen.all:
        raise SettingsError("sagas retry: --saga is allowed only with --all")
    by = _operator()
    if chosen.all:
        return _report_retried(*ask(settings, lambda c: retry_all(c, chosen.saga, by)))
    found = ask(settings, lambda c: retry(c, chosen.id, by))
    print(f"The worker that runs the saga will retry {found.saga} {found.key}.")
    return 0


def _report_retried(count: int, left: int) -> int:
    print(f"The worker that runs the saga will retry {_parked(count)}.")
    if not left:
        return 0
    return complain(
        f"{_parked(left)} changed meanwhile and will not be retried: no worker has reported the change yet; try again, "
        "and see `headwater status` for whether a worker is running"
    )


def _parked(count: int) -> str:
    return "1 parked instance" if count == 1 else f"{count} parked instances"


def run_abandon(chosen: argparse.Namespace, settings: Settings) -> None:
    found = ask(settings, lambda c: abandon(c, chosen.id, chosen.reason, _operator()))
    print(f"{found.saga} {found.key} is abandoned.")


def _operator() -> str:
    """Return the name of the operator, which is recorded in the log."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # the user of a container may have no name
        return f"user {os.getuid()}"


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _line(text: str) -> str:
    """Return text of any origin on one line, with control characters escaped."""
    return printable(" ".join(text.split()))
