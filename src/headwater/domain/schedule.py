"""A schedule: a command that falls due by itself: once, every so often, or by a cron expression. Pure data.

    Schedule("interest", interest_due, cron="0 3 1 * *", timezone="Europe/Berlin")

Which moments are due follows from the declaration alone, so that all workers agree on them without talking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from headwater.domain.fields import require_sync
from headwater.domain.messages import Command
from headwater.errors import DefinitionError

EPOCH = datetime(2001, 1, 1, tzinfo=UTC)
"""What `every` counts from: a Monday, so that weeks begin with one, and days at midnight UTC."""

_TICK = timedelta(microseconds=1)
_CRON_FIELDS = 5


class _Cron(CronSim):
    """The library goes on by whole hours, and misses moments where a clock is changed by half an hour, as on Lord Howe
    Island. This one looks at the clock at the start of each hour, and in between at each minute."""

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
    """A command that falls due by itself, once for each due moment across all workers.

    name: what it is known by in the database and among the actors of the log; another name is another schedule.
    command: makes the command for the moment that was due, in UTC. It must be pure: the same moment gives the same
    command, with the same key, because a worker that died may have sent it already.

    Exactly one of these says when:
    every: an interval, counted from the start of 2001 in UTC (a Monday), not from the start of a worker.
    cron: minute, hour, day of month, month and day of week, as Debian's cron reads them (the library is cronsim), in
    `timezone`. Where the clock is changed, what has a fixed minute and hour happens once: in an hour that is left out,
    right after it; in one that comes twice, the first time. With a star in one of the two it follows the real hours:
    none in the hour that is left out, and in both of the two.
    at: one moment.

    Raises:
        DefinitionError: the declaration makes no sense.
    """

    name: str
    command: Callable[[datetime], Command]
    every: timedelta | None = field(default=None, kw_only=True)
    cron: str | None = field(default=None, kw_only=True)
    at: datetime | None = field(default=None, kw_only=True)
    timezone: str = field(default="UTC", kw_only=True)
    _zone: tzinfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise DefinitionError("A schedule needs a name: it is how the database knows what was fired")
        if not callable(self.command):
            raise self._wrong(f"command={self.command!r} must be a function from the due moment to a command")
        require_sync(self.command)
        if sum(each is not None for each in (self.every, self.cron, self.at)) != 1:
            raise self._wrong("give exactly one of every=, cron= and at=")
        if self.every is not None and self.every <= timedelta(0):
            raise self._wrong(f"every={self.every!r} must be longer than nothing")
        if self.at is not None and self.at.utcoffset() is None:
            raise self._wrong(f"at={self.at!r} needs a time zone, such as tzinfo=UTC")
        if self.cron is None and self.timezone != "UTC":
            raise self._wrong("timezone= belongs to cron=; the moments of every= and at= have none to be read in")
        object.__setattr__(self, "_zone", self._read_zone())
        if self.cron is not None:
            self._check_cron(self.cron)

    def next(self, after: datetime) -> datetime | None:
        """The first due moment after another, in UTC; None when there is none."""
        after = after.astimezone(UTC)
        if self.every is not None:
            return EPOCH + ((after - EPOCH) // self.every + 1) * self.every
        if self.at is not None:
            at = self.at.astimezone(UTC)
            return at if at > after else None
        return next(self._cron_moments(after), None)

    def due(self, after: datetime, upto: datetime) -> datetime | None:
        """The last due moment in (after, upto], in UTC; None when there is none."""
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
        """Looking back finds where to look forward from: near a change of the clock only forward is right."""
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
        """The due moments after another. In the second of two like hours the library begins with the first's."""
        return (moment for moment in self._cron_sim(after) if moment > after)

    def _cron_sim(self, start: datetime, *, reverse: bool = False) -> Iterator[datetime]:
        assert self.cron is not None
        # Compared in UTC: moments of one zone are compared by their wall clocks, which go back once a year.
        return (moment.astimezone(UTC) for moment in _Cron(self.cron, start.astimezone(self._zone), reverse))

    def _read_zone(self) -> tzinfo:
        if self.timezone == "UTC":
            return UTC  # needs no database of zones, and cronsim knows it
        try:
            return ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError) as error:
            raise self._wrong(f"timezone={self.timezone!r} is not in this machine's database of time zones") from error

    def _check_cron(self, cron: str) -> None:
        if len(cron.split()) != _CRON_FIELDS:
            raise self._wrong(
                f"cron={cron!r} must have five fields: minute, hour, day of month, month, day of week; for "
                "seconds there is every="
            )
        try:
            first = self.next(EPOCH)
        except CronSimError as error:
            raise self._wrong(f"cron={cron!r} cannot be read: {error}") from error
        if first is None:
            raise self._wrong(f"cron={cron!r} never comes")

    def _wrong(self, what: str) -> DefinitionError:
        return DefinitionError(f"Schedule {self.name!r}: {what}")
