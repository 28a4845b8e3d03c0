"""A function of the app that fails is reported: once with its traceback in the log, in the status and in readiness."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from uuid import uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support.projecting import QUICK, Counted, Fragile, Poisoned, Start, Tally, things, write
from tests.support.waiting import reached, until

from headwater import App, Feature, Park, Recorded, Stop, View
from headwater.cli.status_report import status
from headwater.consumers import dead_letters
from headwater.consumers.failure_log import KEYS, FailureLog


def failure(text: str = "a bug") -> Exception:
    """Return an exception with a traceback, always from this place."""
    try:
        raise ZeroDivisionError(text)
    except ZeroDivisionError as error:
        return error


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, bool]]:
    """Return each line of a failure log, and True if it has a traceback."""
    found = [each for each in caplog.records if each.name == "headwater.consumers.failure_log"]
    assert all(each.levelno == logging.ERROR for each in found)
    return [(each.getMessage(), each.exc_info is not None) for each in found]


async def test_a_key_and_cause_have_one_traceback_and_further_failures_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = FailureLog("Account", seconds=0.01)
    for position in range(5):
        log.log(failure(), "one", f"position {position} failed")
    log.log(failure(), "two", "position 9 failed")
    log.log(TypeError("another cause"), "one", "position 10 failed")
    expected = [
        ("Account: position 0 failed: ZeroDivisionError: a bug", True),
        ("Account: position 9 failed: ZeroDivisionError: a bug", True),
        ("Account: position 10 failed: TypeError: another cause", True),
        (
            "Account: 4 more failures of the same cause within 0.01 s, the last one: position 4 failed: "
            "ZeroDivisionError: a bug",
            False,
        ),
    ]
    await until(lambda: lines(caplog) == expected)
    log.log(failure(), "one", "position 4 failed")
    await until(lambda: len(lines(caplog)) == 5)
    assert lines(caplog)[-1][0].startswith("Account: 1 more failure of the same cause within 0.01 s")


async def test_a_function_that_fails_on_every_key_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    log = FailureLog("Account", seconds=0.01)
    for key in range(1_000):
        log.log(failure(f"bug of {key}"), key, f"position {key} failed")
    await until(lambda: len(lines(caplog)) == KEYS + 1)
    assert lines(caplog)[-1][0].startswith("Account: 990 more failures of the same cause")


async def test_a_unit_that_halts_and_a_parked_key_are_in_the_log_the_status_and_the_readiness(
    start: Start, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    bug = True

    def halting(row: Fragile | None, event: Recorded[Counted | Poisoned]) -> Fragile:
        if bug and isinstance(event.data, Poisoned):
            raise ZeroDivisionError("a bug in the fold")
        return Fragile(thing_id=event.data.thing_id, count=0)

    def parking(row: Tally | None, event: Recorded[Counted | Poisoned]) -> Tally:
        if bug and isinstance(event.data, Poisoned):
            raise LookupError("another bug")
        return Tally(thing_id=event.data.thing_id, count=0)

    app = App([Feature([things], [View(Fragile, halting, on_failure=Stop()), View(Tally, parking, on_failure=Park())])])
    one = uuid4()
    head = await write(connection, Counted(thing_id=one), Poisoned(thing_id=one))
    node = await start(app, settings=replace(QUICK, ready_failures="parked"))

    async def standings() -> dict[str, tuple[str | None, int, str | None]]:
        found, ours = (await status(connection, {})).projections, ("Fragile", "Tally")
        return {each.name: (each.failure, each.parked_keys, each.parked_failure) for each in found if each.name in ours}

    halts = f"FoldFailed: Fragile: the fold of Poisoned at position 2 on row {one} raised ZeroDivisionError: "
    failing = {
        "Fragile": (halts + "a bug in the fold", 0, None),
        "Tally": (None, 1, "LookupError: another bug"),
    }
    await until(is_(standings, failing))
    troubles = {
        "unit Fragile": f"it halts: {halts}a bug in the fold",
        "unit Tally": "1 key is parked, the first one by LookupError: another bug",
    }
    await until(is_(node.troubles, troubles))
    text = (await status(connection, {})).as_text()
    assert f"Fragile 1 halts before an event: {halts}a bug in the fold" in text
    assert "Tally 1: 1 key is parked, the first one by LookupError: another bug; see `headwater dead-letters" in text
    with_traceback = [line for line, traceback in lines(caplog) if traceback]
    assert sorted(with_traceback) == [
        "Fragile: it halts before the event at position 2: ZeroDivisionError: a bug in the fold",
        f"Tally: the fold of Poisoned at position 2 on row {one} failed, and the row is parked: LookupError: "
        "another bug",
    ]
    assert not [each for each in caplog.records if each.name == "headwater.supervisor"], "each retry would be a line"

    bug = False
    await dead_letters.retry(connection, dead_letters.LetterFilter())
    await reached(node.positions, "Fragile", head)
    await until(is_(standings, {"Fragile": (None, 0, None), "Tally": (None, 0, None)}))
    await until(is_(node.troubles, {}))


def is_(read: Callable[[], Awaitable[object]], expected: object) -> Callable[[], Awaitable[bool]]:
    async def equal() -> bool:
        return await read() == expected

    return equal
