"""Schedules: the due moments that a declaration gives, and the errors for invalid declarations."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater import Command, Feature, Schedule
from headwater.domain.feature import Domain
from headwater.errors import DefinitionError

DOCUMENT = Path(__file__).parents[2] / "docs" / "schedules.md"
BERLIN = ZoneInfo("Europe/Berlin")


class Ring(Command):
    bell_id: UUID


def ring(due: datetime) -> Ring:
    return Ring(bell_id=UUID(int=1))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def moments(schedule: Schedule, after: datetime, upto: datetime) -> list[datetime]:
    """Return every due moment in (after, upto], found one after the other."""
    found = []
    while (moment := schedule.next(after)) is not None and moment <= upto:
        assert moment > after
        assert moment.tzinfo is UTC
        found.append(moment)
        after = moment
    return found


def in_berlin(cron: str, day: str) -> list[str]:
    """Return the due moments of a day in Berlin, each with its offset from UTC."""
    schedule = Schedule("bell", ring, cron=cron, timezone="Europe/Berlin")
    midnight = datetime.fromisoformat(day).replace(tzinfo=BERLIN)
    found = moments(schedule, midnight - timedelta(seconds=1), midnight + timedelta(days=1, seconds=-1))
    assert schedule.due(midnight - timedelta(seconds=1), midnight + timedelta(days=1, seconds=-1)) == max(
        found, default=None
    )
    return [moment.astimezone(BERLIN).strftime("%H:%M%z") for moment in found]


# Declarations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({}, "give exactly one of every=, cron= and at="),
        ({"every": timedelta(hours=1), "cron": "0 3 * * *"}, "give exactly one of every=, cron= and at="),
        ({"cron": "0 3 * * *", "at": utc("2026-01-01")}, "give exactly one of every=, cron= and at="),
        ({"every": timedelta(0)}, "every=datetime.timedelta(0) must be longer than zero"),
        ({"every": timedelta(hours=-1)}, "must be longer than zero"),
        ({"at": datetime(2026, 1, 1)}, "at=datetime.datetime(2026, 1, 1, 0, 0): Expected a time with a time zone"),  # noqa: DTZ001
        ({"at": datetime.max.replace(tzinfo=UTC)}, "tzinfo=datetime.timezone.utc): Expected a time after 0001-01-01"),
        ({"every": timedelta.max}, "86399, microseconds=999999) must be 36500 days at most"),
        ({"cron": "61 * * * *"}, "cron='61 * * * *' is not a cron expression: Bad minute"),
        ({"cron": "0 0 30 2 *"}, "cron='0 0 30 2 *' is not a cron expression: Bad day-of-month"),
        ({"cron": "0 0 */28 * MON#2"}, "cron='0 0 */28 * MON#2' is never due"),
        ({"cron": "0 3 * *"}, "cron='0 3 * *' must have five fields"),
        ({"cron": "* 0 3 * * *"}, "must have five fields"),
        ({"cron": "0 3 * * *", "timezone": "Europe/Atlantis"}, "timezone='Europe/Atlantis' is not in this machine's"),
        ({"cron": "0 3 * * *", "timezone": "../etc"}, "timezone='../etc' is not in this machine's"),
        ({"cron": "0 3 * * *", "timezone": ""}, "timezone='' is not in this machine's"),
        ({"every": timedelta(1), "timezone": "Europe/Berlin"}, "timezone= goes with cron= only"),
        ({"every": timedelta(1), "command": "ring"}, "command='ring' must be a function"),
    ],
)
def test_the_error_for_an_invalid_declaration_names_the_schedule_and_the_problem(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(DefinitionError, match=re.escape(complaint)) as caught:
        Schedule("bell", options.pop("command", ring), **options)
    assert str(caught.value).startswith("Schedule 'bell': ")


@pytest.mark.parametrize("name", ["", " "])
def test_a_schedule_without_a_name_is_rejected(name: str) -> None:
    with pytest.raises(DefinitionError, match="A schedule's name has 1 to 200 characters"):
        Schedule(name, ring, every=timedelta(hours=1))


def test_two_schedules_of_one_app_cannot_share_a_name() -> None:
    one, other = (Schedule(name, ring, every=timedelta(hours=1)) for name in ("bell", "Bell"))
    with pytest.raises(DefinitionError, match="The app has two declarations of a schedule named 'Bell'"):
        Domain([Feature(schedules=[one]), Feature(schedules=[other])])
    assert Domain([Feature(schedules=[one]), Feature()]).schedules == (one,)


def test_schedules_with_equal_declarations_are_equal() -> None:
    assert Schedule("bell", ring, cron="0 3 * * *") == Schedule("bell", ring, cron="0 3 * * *")
    assert Schedule("bell", ring, cron="0 3 * * *") != Schedule("bell", ring, cron="0 4 * * *")


# Due moments ---------------------------------------------------------------------------------------------------------


def test_an_interval_counts_from_a_fixed_monday() -> None:
    weekly = Schedule("bell", ring, every=timedelta(days=7))
    assert weekly.next(utc("2026-11-25T12:00")) == utc("2026-11-30")
    assert weekly.due(utc("2026-11-01"), utc("2026-11-25T12:00")) == utc("2026-11-23")
    assert weekly.due(utc("2026-11-23"), utc("2026-11-25T12:00")) is None
    assert weekly.due(utc("2026-11-22"), utc("2026-11-23")) == utc("2026-11-23")
    assert weekly.due(utc("2026-11-25"), utc("2026-11-22")) is None


def test_a_schedule_at_one_moment_is_due_once() -> None:
    once = Schedule("bell", ring, at=datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))))
    assert once.next(utc("2025-12-31")) == utc("2026-01-01")
    assert once.next(utc("2026-01-01")) is None
    assert once.due(utc("2025-12-31"), utc("2026-01-01")) == utc("2026-01-01")
    assert once.due(utc("2025-12-31"), utc("2030-01-01")) == utc("2026-01-01")
    assert once.due(utc("2025-12-30"), utc("2025-12-31")) is None
    assert once.due(utc("2026-01-01"), utc("2030-01-01")) is None


def test_a_cron_expression_is_read_in_its_time_zone() -> None:
    assert Schedule("bell", ring, cron="0 3 * * *").next(utc("2026-07-01")) == utc("2026-07-01T03:00")
    nightly = Schedule("bell", ring, cron="0 3 * * *", timezone="Europe/Berlin")
    assert nightly.next(utc("2026-07-01")) == utc("2026-07-01T01:00")
    assert nightly.next(utc("2026-01-01")) == utc("2026-01-01T02:00")
    assert nightly.due(utc("2020-01-01"), utc("2026-01-01")) == utc("2025-12-31T02:00")


def test_after_years_without_a_worker_the_last_moment_is_found_at_once() -> None:
    minutely = Schedule("bell", ring, cron="* * * * *", timezone="Europe/Berlin")
    assert minutely.due(utc("2001-01-01"), utc("2026-01-01T00:00:59.5")) == utc("2026-01-01")


@pytest.mark.parametrize(
    "cron, day, expected",
    [
        ("30 2 * * *", "2026-03-28", ["02:30+0100"]),
        ("30 2 * * *", "2026-03-29", ["03:00+0200"]),  # 02:30 does not exist
        ("30 2 * * *", "2026-10-25", ["02:30+0200"]),  # 02:30 exists twice
        ("*/30 2 * * *", "2026-03-29", []),
        ("*/30 2 * * *", "2026-10-25", ["02:00+0200", "02:30+0200", "02:00+0100", "02:30+0100"]),
        ("15,45 2,3 * * *", "2026-03-29", ["03:00+0200", "03:15+0200", "03:45+0200"]),
        ("15,45 2,3 * * *", "2026-10-25", ["02:15+0200", "02:45+0200", "03:15+0100", "03:45+0100"]),
    ],
)
def test_a_cron_expression_around_a_clock_change(cron: str, day: str, expected: list[str]) -> None:
    assert in_berlin(cron, day) == expected


def test_a_fixed_time_is_not_due_again_in_a_repeated_hour() -> None:
    schedule = Schedule("bell", ring, cron="30 2 * * *", timezone="Europe/Berlin")
    second = utc("2026-10-25T01:10")  # 02:10 for the second time
    assert schedule.next(second) == utc("2026-10-26T01:30")
    assert schedule.due(utc("2026-10-25"), second) == utc("2026-10-25T00:30")


@pytest.mark.parametrize(
    "cron, day, expected",
    [
        ("0 */2 * * *", "2026-04-05", ["00:00+1100", "02:00+1030", "04:00+1030"]),
        (
            "45 * * * *",
            "2026-04-05",
            ["00:45+1100", "01:45+1100", "01:45+1030", "02:45+1030", "03:45+1030", "04:45+1030"],
        ),
        ("15 */2 * * *", "2026-10-04", ["00:15+1030", "04:15+1100"]),  # 02:15 does not exist
        ("0 */3 * * *", "2026-10-04", ["00:00+1030", "03:00+1100"]),
        ("0 * * * *", "2026-10-04", ["00:00+1030", "01:00+1030", "03:00+1100", "04:00+1100"]),  # 02:00 does not exist
    ],
)
def test_a_cron_expression_around_a_clock_change_of_half_an_hour(cron: str, day: str, expected: list[str]) -> None:
    """On Lord Howe Island the clock changes at 02:00: back to 01:30 in April, forward to 02:30 in October."""
    zone = ZoneInfo("Australia/Lord_Howe")
    schedule = Schedule("bell", ring, cron=cron, timezone="Australia/Lord_Howe")
    midnight = datetime.fromisoformat(day).replace(tzinfo=zone)
    begin, end = midnight - timedelta(seconds=1), midnight + timedelta(hours=5, seconds=-1)
    found = moments(schedule, begin, end)
    assert [moment.astimezone(zone).strftime("%H:%M%z") for moment in found] == expected
    assert schedule.due(begin, end) == found[-1]


# Half of the spans begin near a clock change in one of the time zones.
changes = [
    "2026-03-29T01:00",
    "2026-10-25T01:00",
    "2026-03-08T07:00",
    "2026-11-01T06:00",
    "2026-04-04T16:00",
    "2026-04-04T15:00",
    "2026-10-03T15:30",
]
begins = st.one_of(
    st.datetimes(datetime(2024, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - just above
    st.builds(
        lambda change, minutes, more: utc(change) + timedelta(minutes=minutes, microseconds=more),
        st.sampled_from([*changes, "2026-03-28T22:00", "2026-10-24T21:00"]),
        st.integers(-300, 300),
        st.sampled_from([0, 0, 1, 30_000_000]),
    ),
)
spans = st.one_of(st.integers(0, 400), st.integers(0, 40_000)).map(lambda minutes: timedelta(minutes=minutes))
fields = [["0", "30", "5,35", "*", "*/20"], ["0", "2", "1,2", "2-4", "*", "*/6"], ["*", "1", "L"], ["*", "MON", "0#1"]]
crons = st.tuples(*[st.sampled_from(each) for each in fields]).map(lambda four: "{} {} {} * {}".format(*four))
HALF = "Australia/Lord_Howe"
zones = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/New_York", "Australia/Sydney", "Asia/Beirut", "Asia/Kolkata", HALF]
)
schedules = st.one_of(
    st.builds(lambda cron, zone: Schedule("bell", ring, cron=cron, timezone=zone), crons, zones),
    st.builds(
        lambda every: Schedule("bell", ring, every=every),
        st.timedeltas(timedelta(minutes=7), timedelta(days=9)),
    ),
    st.builds(lambda at: Schedule("bell", ring, at=at), begins),
)


@settings(deadline=None)  # every minute of weeks is found one by one
@given(schedules, begins, spans)
def test_due_returns_the_last_moment_that_repeated_calls_of_next_find(
    schedule: Schedule, begin: datetime, span: timedelta
) -> None:
    found = moments(schedule, begin, begin + span)
    assert schedule.due(begin, begin + span) == max(found, default=None)
    if found:
        assert schedule.due(begin, found[-1]) == found[-1]
        assert schedule.due(found[-1], begin + span) is None


# The document --------------------------------------------------------------------------------------------------------


def test_the_example_in_the_document_gives_the_moments_that_it_describes() -> None:
    [example] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, DOCUMENT.name, "exec", dont_inherit=True), names)
    domain = Domain([names["feature"]])
    due: dict[str, tuple[Any, datetime]] = {
        schedule.name: (schedule.command(moment), moment)
        for schedule in domain.schedules
        if (moment := schedule.next(utc("2026-06-01T12:05"))) is not None
    }
    assert {name: moment for name, (_, moment) in due.items()} == {
        "nightly report": utc("2026-06-02T01:00"),
        "quarterly hour": utc("2026-06-01T12:15"),
        "end of the year": utc("2030-12-31T23:00"),
    }
    assert all(command.upto == moment for command, moment in due.values())
    assert len({command.report_id for command, _ in due.values()}) == len(due)
