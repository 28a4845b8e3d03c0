"""`headwater dead-letters list | show | retry | discard`: events whose handling failed, and what to do about them."""

from __future__ import annotations

import argparse

from headwater.cli.connection import ask
from headwater.cli.output import complain
from headwater.cli.terminal import aligned, printable
from headwater.config import Settings
from headwater.consumers.dead_letters import LetterFilter, ListedLetter, discard, listed, retry
from headwater.errors import SettingsError

MOST = 1_000
"""The most dead letters that one command prints."""

_BEHIND = "none: it waits for an earlier event of its key"

HEADINGS = ("PROJECTION", "KEY", "POSITION", "TYPE", "ATTEMPTS", "BEHIND", "PARKED SINCE", "NEXT", "ERROR")


def _filter(chosen: argparse.Namespace) -> LetterFilter:
    return LetterFilter(chosen.projection, chosen.key, chosen.position)


def run_list(chosen: argparse.Namespace, settings: Settings) -> None:
    letters = _listed(chosen, settings)
    if not letters:
        print("No dead letters.")
        return
    print(aligned(HEADINGS, [_row(letter) for letter in letters]))
    if len(letters) == MOST:
        print(f"There may be more than these {MOST}; narrow the search by --projection or --key.")


def _row(letter: ListedLetter) -> tuple[object, ...]:
    return (
        letter.projection,
        letter.key,
        letter.position,
        letter.type,
        letter.attempts,
        letter.waiting,
        f"{letter.parked_at:%Y-%m-%d %H:%M:%S}",
        f"{letter.next_attempt_at:%H:%M:%S}" if letter.next_attempt_at else "",
        (letter.error or _BEHIND).splitlines()[0],
    )


def run_show(chosen: argparse.Namespace, settings: Settings) -> int:
    # An event that is named by its position is shown even if others of its key come before it.
    chosen.all = chosen.all or chosen.position is not None
    letters = _listed(chosen, settings)
    if not letters:
        return _none_found()
    print("\n\n".join(_shown(letter) for letter in letters))
    return 0


def _shown(letter: ListedLetter) -> str:
    due = (
        "after `headwater dead-letters retry`"
        if letter.next_attempt_at is None
        else f"{letter.next_attempt_at:%Y-%m-%d %H:%M:%S} UTC"
    )
    return "\n".join(
        [
            f"{letter.projection} {letter.key}: {letter.type} at position {letter.position}",
            f"  recorded      {letter.recorded_at:%Y-%m-%d %H:%M:%S} UTC in stream {letter.stream_id}",
            f"  parked        {letter.parked_at:%Y-%m-%d %H:%M:%S} UTC, {letter.waiting} events of its key behind it",
            f"  attempts      {letter.attempts}, next {due if letter.error else 'after the event before it'}",
            f"  data          {printable(letter.data)}",
            f"  error {letter.traceback_hash or '-':<8}".rstrip(),
            *(f"    {printable(line)}" for line in (letter.error or _BEHIND).splitlines()),
        ]
    )


def _listed(chosen: argparse.Namespace, settings: Settings) -> list[ListedLetter]:
    where = _filter(chosen)
    return ask(settings, lambda c: listed(c, where, first_only=not chosen.all, limit=MOST))


def run_retry(chosen: argparse.Namespace, settings: Settings) -> int:
    where = _filter(chosen)
    return _marked(ask(settings, lambda c: retry(c, where)), "key", "tried again")


def run_discard(chosen: argparse.Namespace, settings: Settings) -> int:
    where = _filter(chosen)
    if where == LetterFilter():
        raise SettingsError("dead-letters discard: select the dead letters by --projection, --key or --position")
    return _marked(ask(settings, lambda c: discard(c, where, everything=chosen.all)), "event", "discarded")


def _marked(count: int, what: str, done: str) -> int:
    if not count:
        return _none_found()
    print(f"{count} {what}{'' if count == 1 else 's'} will be {done} by the worker that runs the consumer.")
    return 0


def _none_found() -> int:
    return complain("no dead letter matches; see `headwater dead-letters list`")
