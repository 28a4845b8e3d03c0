"""The health of a process: whether it can answer, and whether it can write the log.

It says nothing about the rest of the deployment. Lag and failures of the app's functions are the same for every
process, so they count only where a setting says so, and a lock on a table of the read models or their checkpoints takes
no process out of service.

    well -> a look finds a trouble -> pending, looked at more often -> it lasts for the grace -> not ready
    pending, not ready -> a look does not find it any more -> well

A pending trouble is no trouble yet, so that a lost connection, or a lock that is held for a moment, does not flap.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from headwater.clock import Clock
from headwater.eventstore.appender import Appender
from headwater.eventstore.epoch import EpochEnded, Epochs
from headwater.postgres import queries
from headwater.postgres.database import FAILING, PASSING, Database
from headwater.supervisor import Supervisor, within

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)

DATABASE, READ, WRITE, HEALTH = "database", "log read", "log write", "health"
"""The names of troubles that are not those of a task."""

APPENDER = "appender"
EVERY_SECONDS = 2.0
EVERY_SECONDS_UNREADY = 1.0
EVERY_SECONDS_PENDING = 0.25
GRACE_SECONDS = 3.0


class Trouble(msgspec.Struct, frozen=True):
    """A fault of a process, as its health check found it.

    name: of a task, or of what the process cannot do. since: when it was first found. unready: it makes the process not
    ready; the others only slow it down, or concern work that another process can take over.
    """

    name: str
    why: str
    since: datetime
    unready: bool


@dataclass(frozen=True)
class _Found:
    """The troubles that one look has found: the reason of each, by its name.

    unready: those that make the process unready. others: the rest.
    """

    unready: Mapping[str, str]
    others: Mapping[str, str]


@dataclass
class _Noted:
    began: float
    since: datetime
    is_logged: bool = False


class Health:
    """Looks at the process every few seconds: `troubles` is what it found.

    database: a connection of its own, so that neither slow queries nor scrapes keep it waiting. appender: None in a
    process that decides no commands. housekeeping: returns the tasks whose failure leaves a serving process ready, such
    as a projection, which another process can run. faulty: returns the units that are too late or fail, as far as
    settings say that they count, with the reason of each. seconds: the time that PostgreSQL has for an answer. grace:
    the seconds that a trouble has to last. is_logged: takes this part's name and an error; True if it is logged as part
    of an outage.
    """

    def __init__(
        self,
        database: Database,
        epochs: Epochs,
        supervisor: Supervisor,
        *,
        appender: Appender | None,
        housekeeping: Callable[[], Collection[str]],
        faulty: Callable[[], Awaitable[Mapping[str, str]]],
        clock: Clock,
        seconds: float = 2.0,
        grace: float = GRACE_SECONDS,
        is_logged: Callable[[str, BaseException], bool] = lambda part, error: False,
    ) -> None:
        self.decides = appender is not None
        self._database = database
        self._epochs = epochs
        self._supervisor = supervisor
        self._appender = appender
        self._housekeeping = housekeeping
        self._faulty = faulty
        self._clock = clock
        self._seconds = seconds
        self._grace = grace
        self._is_logged = is_logged
        self._noted: dict[str, _Noted] = {}
        self._covered: set[str] = set()
        self._written = 0
        self._locked_at: int | None = None
        self._troubles: tuple[Trouble, ...] = ()
        self._is_pending = False

    @property
    def troubles(self) -> list[Trouble]:
        """The present troubles. The process is ready if none of them is `unready`."""
        dead = self._supervisor.troubles.get(HEALTH)
        own = [] if dead is None else [Trouble(HEALTH, dead, self._clock.now(), unready=True)]
        return [*self._troubles, *own]

    @property
    def unready(self) -> dict[str, str]:
        """Why the process is not ready, by the name of the trouble. Empty when it is ready."""
        return {each.name: each.why for each in self.troubles if each.unready}

    @property
    def readable(self) -> bool:
        """True if the log can be read."""
        return not self.unready.keys() & {DATABASE, READ}

    @property
    def writable(self) -> bool:
        """True if the log can be written by this process. False also in a shortage, which leaves it ready."""
        return not {each.name for each in self.troubles} & {DATABASE, WRITE, APPENDER}

    async def begin(self) -> None:
        """Look for the first time. Without a grace: a process that starts is not ready before it can do its work."""
        await self._look_and_note(grace=0)

    async def run(self) -> None:
        """Look again and again, until cancelled. Runs under a supervisor."""
        while True:
            await asyncio.sleep(self._pause())
            await self._look_and_note(self._grace)
            self._supervisor.well(HEALTH)

    async def look(self) -> dict[str, str]:
        """Return what would make the process unready if it lasted, by name."""
        return dict((await self._look()).unready)

    def _pause(self) -> float:
        if self._is_pending:
            return EVERY_SECONDS_PENDING
        every = EVERY_SECONDS_UNREADY if self.unready else EVERY_SECONDS
        return min(every, self._grace or every)  # not more seldom than a trouble has to last

    async def _look(self) -> _Found:
        self._covered = set()
        unready, others = self._tasks()
        if (why := await self._asked(DATABASE, self._reach)) is not None:
            return _Found(unready | {DATABASE: why}, others)
        asked = {READ: self._read} | ({WRITE: self._write} if self.decides else {})
        for name, question in asked.items():
            if (why := await self._asked(name, question)) is not None:
                unready[name] = why
        if self._appender is not None and self._appender.shortage is not None:
            # Not unready: the log can be read, each append is tried, and only an append shows that there is room again.
            others[WRITE] = self._appender.shortage
        return _Found({**await self._faulty(), **unready}, others)

    def _tasks(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the tasks in trouble: those that make the process unready, and the others."""
        errors, housekeeping = self._supervisor.errors, self._housekeeping()
        unready: dict[str, str] = {}
        others: dict[str, str] = {}
        for name, why in self._supervisor.troubles.items():
            # A fault of the database passes. Whether it keeps the process from its work, the questions find out.
            passes = isinstance(errors.get(name), PASSING) or name in housekeeping
            counts = name == APPENDER or not passes
            (unready if counts else others)[name] = why
        return unready, others

    async def _asked(self, name: str, question: Callable[[], Awaitable[str | None]]) -> str | None:
        """Return why the answer to a question is no; None if it is yes."""
        try:
            return await within(self._seconds, question())  # type: ignore[arg-type]  # each is a coroutine
        except FAILING as error:
            if self._is_logged(HEALTH, error):
                self._covered.add(name)
            return f"{type(error).__name__}: {error}"

    async def _reach(self) -> str | None:
        await self._database.pool.fetchval(_SQL["reach"])
        return None

    async def _read(self) -> str | None:
        await self._database.pool.fetchrow(_SQL["read"])
        return None

    async def _write(self) -> str | None:
        """Ask whether an append could be written, unless this process has just written one."""
        assert self._appender is not None  # asked only in a process that decides
        batches, before = self._appender.counts.batches, self._written
        self._written = batches
        if batches > before:
            return None
        try:
            answer = await self._database.pool.fetchrow(_SQL["write"], self._epochs.current.number)
        except (asyncpg.ReadOnlySQLTransactionError, EpochEnded):
            await self._database.pool.expire_connections()  # the next one may be to another server
            raise
        return self._judged(answer)

    def _judged(self, answer: Any) -> str | None:
        """Return why the log cannot be written. A lock of others does not matter while the log grows."""
        before, self._locked_at = self._locked_at, answer["position"]
        if answer["free"] or (before is not None and answer["position"] != before):
            return None
        return "another session has locked the log, and does not write"

    async def _look_and_note(self, grace: float) -> None:
        # A lock makes each question of a look wait. What it finds has lasted since it began.
        noted = _Noted(asyncio.get_running_loop().time(), self._clock.now())
        self._note(await self._look(), grace, noted)

    def _note(self, found: _Found, grace: float, noted: _Noted) -> None:
        """Remember what was found; what has lasted for the grace becomes a trouble. noted: when the look began."""
        now = asyncio.get_running_loop().time()
        whys = {**found.others, **found.unready}
        for name in self._noted.keys() - whys.keys():
            self._log_end(name, self._noted.pop(name))
        for name in whys.keys() - self._noted.keys():
            self._noted[name] = replace(noted)
        self._troubles = tuple(
            Trouble(name, why, self._noted[name].since, name in found.unready)
            for name, why in sorted(whys.items())
            if now - self._noted[name].began >= grace
        )
        self._is_pending = not found.unready.keys() <= self.unready.keys()
        for each in self._troubles:
            self._log_begin(each)

    def _log_begin(self, trouble: Trouble) -> None:
        """Log a trouble once, unless its task or the outage's lines do."""
        noted = self._noted[trouble.name]
        is_own = trouble.name in (DATABASE, READ, WRITE) and trouble.name not in self._covered
        if trouble.unready and is_own and not noted.is_logged:
            noted.is_logged = True
            logger.warning("this process is not ready: %s: %s", trouble.name, trouble.why)

    def _log_end(self, name: str, noted: _Noted) -> None:
        if noted.is_logged:
            seconds = (self._clock.now() - noted.since).total_seconds()
            logger.warning("%s works again after %.1f s", name, seconds)
