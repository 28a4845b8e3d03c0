"""A schedule: a command that is sent at set times: once, at an interval, or by a cron expression. Pure data.

    Schedule("interest", interest_due, cron="0 3 1 * *", timezone="Europe/Berlin")

The due moments follow from the declaration alone, so that all workers compute the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from headwater.domain.fields import require_sync
from headwater.domain.messages import Command
from headwater.domain.stored_names import require_stored_name
from headwater.domain.value_rules import complaint_about_time
from headwater.errors import DefinitionError

EPOCH = datetime(2001, 1, 1, tzinfo=UTC)
"""The origin of `every`: midnight UTC of a Monday, so that days begin at midnight and weeks on Mondays."""

LONGEST_INTERVAL = timedelta(days=36_500)
"""A century. With an interval of thousands of years, the next moment would be after the last one of `datetime`."""

_TICK = timedelta(microseconds=1)
_CRON_FIELDS = 5


class _Cron(CronSim):
    """A CronSim that also finds the moments around a clock change of half an hour, as on Lord Howe Island.

    The library advances by whole hours and misses them. This class stops at the start of each hour and, within an hour,
    at each minute.
    """

    def advance_minute(self) -> bool:
        if self.dt.minute in self.minutes:
            return False
        self.dt = self.dt.replace(second=0)
        while self.dt.minute not in self.minutes:
            self.tick(seconds=60)
            if self.dt.minute == 0:
                break
        return True

    def advance_hour(self) -> bool:
        if self.dt.hour in self.hours:
            return False
        self.dt = self.dt.replace(minute=0, second=0)
        while self.dt.hour not in self.hours:
            self.tick(seconds=3600 - self.dt.minute * 60)
            if self.dt.hour == 0:
                break
        return True


@dataclass(frozen=True)
class Schedule:
    """A command that is sent once for each due moment, however many workers run.

        Schedule("interest", interest_due, cron="0 3 1 * *", timezone="Europe/Berlin")

    name: identifies the schedule in the database and as an actor in the log. A schedule with another name is another
    schedule.
    command: returns the command for a due moment, in UTC. It must be pure: the same moment gives the same command with
    the same key, because a worker that died may already have sent it.

    Exactly one of these gives the moments:
    every: an interval, counted from the start of 2001 in UTC (a Monday), not from the start of a worker.
    cron: minute, hour, day of month, month and day of week in `timezone`, with the meaning of Debian's cron (the
    library is cronsim). Around a clock change, an expression with a fixed minute and hour is due once: right after
    the skipped hour, or in the first of two repeated hours. One with a star in the minute or the hour follows the real
    hours: not at all in the skipped hour, and in both of the repeated hours.
    at: one moment.

    Raises:
        DefinitionError: the declaration is invalid.
    """

    name: str
    command: Callable[[datetime], Command]
    every: timedelta | None = field(default=None, kw_only=True)
    cron: str | None = field(default=None, kw_only=True)
    at: datetime | None = field(default=None, kw_only=True)
    timezone: str = field(default="UTC", kw_only=True)
    _zone: tzinfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_stored_name("A schedule's name", self.name)
        if not callable(self.command):
            raise self._wrong(f"command={self.command!r} must be a function from the due moment to a command")
        require_sync(self.command)
        if sum(each is not None for each in (self.every, self.cron, self.at)) != 1:
            raise self._wrong("give exactly one of every=, cron= and at=")
        if self.every is not None and self.every <= timedelta(0):
            raise self._wrong(f"every={self.every!r} must be longer than zero")
        if self.every is not None and self.every > LONGEST_INTERVAL:
            raise self._wrong(f"every={self.every!r} must be {LONGEST_INTERVAL.days} days at most")
        if self.at is not None and (complaint := complaint_about_time(self.at)) is not None:
            raise self._wrong(f"at={self.at!r}: {complaint}")
        if self.cron is None and self.timezone != "UTC":
            raise self._wrong("timezone= goes with cron= only: every= counts in UTC, and at= has its own time zone")
        object.__setattr__(self, "_zone", self._read_zone())
        if self.cron is not None:
            self._check_cron(self.cron)

    def next(self, after: datetime) -> datetime | None:
        """Return the first due moment after the given one, in UTC, or None."""
        after = after.astimezone(UTC)
        if self.every is not None:
            return EPOCH + ((after - EPOCH) // self.every + 1) * self.every
        if self.at is not None:
            at = self.at.astimezone(UTC)
            return at if at > after else None
        return next(self._cron_moments(after), None)

    def due(self, after: datetime, upto: datetime) -> datetime | None:
        """Return the last due moment in (after, upto], in UTC, or None."""
        after, upto = after.astimezone(UTC), upto.astimezone(UTC)
        if upto <= after:
            return None
        if self.every is not None:
            last = EPOCH + (upto - EPOCH) // self.every * self.every
            return last if last > after else None
        if self.at is not None:
            at = self.at.astimezone(UTC)
            return at if after < at <= upto else None
        return self._last_of_cron(after, upto)

    def _last_of_cron(self, after: datetime, upto: datetime) -> datetime | None:
        """Search backward for a start, then forward from it: near a clock change only the forward search is exact."""
        for earlier in self._cron_sim(upto, reverse=True):
            begin = max(after, min(earlier, upto) - _TICK)
            last = None
            for moment in self._cron_moments(begin):
                if moment > upto:
                    break
                last = moment
            if last is not None or begin == after:
                return last
        return None

    def _cron_moments(self, after: datetime) -> Iterator[datetime]:
        """Yield the due moments after the given one. In a repeated hour the library starts with those of the first."""
        return (moment for moment in self._cron_sim(after) if moment > after)

    def _cron_sim(self, start: datetime, *, reverse: bool = False) -> Iterator[datetime]:
        assert self.cron is not None
        # In UTC, since Python compares moments of one zone by their wall clocks, which go back once a year.
        return (moment.astimezone(UTC) for moment in _Cron(self.cron, start.astimezone(self._zone), reverse))

    def _read_zone(self) -> tzinfo:
        if self.timezone == "UTC":
            return UTC  # needs no time zone database, and cronsim accepts it
        try:
            return ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError) as error:
            raise self._wrong(f"timezone={self.timezone!r} is not in this machine's database of time zones") from error

    def _check_cron(self, cron: str) -> None:
        if len(cron.split()) != _CRON_FIELDS:
            raise self._wrong(
                f"cron={cron!r} must have five fields: minute, hour, day of month, month, day of week; use "
                "every= for an interval of seconds"
            )
        try:
            first = self.next(EPOCH)
        except CronSimError as error:
            raise self._wrong(f"cron={cron!r} is not a cron expression: {error}") from error
        if first is None:
            raise self._wrong(f"cron={cron!r} is never due: no date matches it")

    def _wrong(self, what: str) -> DefinitionError:
        return DefinitionError(f"Schedule {self.name!r}: {what}")
