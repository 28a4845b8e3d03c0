"""The supervisor: a task that dies is logged, shows as a trouble, and is restarted after a pause."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
from tests.support.waiting import until

from headwater.supervisor import Supervisor, backoff


class Task:
    """A task that dies the given number of times, then runs. lasting: seconds that it runs before each death."""

    def __init__(self, deaths: int = 0, *, lasting: float = 0) -> None:
        self.starts = 0
        self.running = asyncio.Event()
        self.ended = asyncio.Event()
        self._deaths = deaths
        self._lasting = lasting

    async def run(self) -> None:
        self.starts += 1
        if self.starts <= self._deaths:
            await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=self._lasting)
            raise OSError(f"death {self.starts}")
        self.running.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()


async def seen(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), 5)


class Pauses:
    """Computes pauses of no length, and records for which numbers of failures."""

    def __init__(self) -> None:
        self.failures: list[int] = []

    def __call__(self, failures: int) -> float:
        self.failures.append(failures)
        return 0


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


async def test_a_task_that_dies_is_logged_and_restarted(pauses: Pauses, caplog: pytest.LogCaptureFixture) -> None:
    async with Supervisor(pause=pauses) as supervisor:
        task = Task(deaths=3)
        supervisor.start("listener", task.run)
        await seen(task.running)
        assert (task.starts, pauses.failures) == (4, [1, 2, 3])
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, f"listener died; it starts again in 0.0 s (failure {n})") for n in (1, 2, 3)
    ]
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == [
        f"death {n}" for n in (1, 2, 3)
    ]


async def test_the_trouble_of_a_task_shows_until_the_task_reports_that_it_is_well(pauses: Pauses) -> None:
    async with Supervisor(pause=pauses) as supervisor:
        task, other = Task(deaths=2), Task()
        assert supervisor.troubles == {}
        supervisor.start("listener", task.run)
        supervisor.start("feed", other.run)
        await seen(task.running)
        await seen(other.running)
        # A running task is not yet well: it may still be waiting for the thing that it died of.
        assert supervisor.troubles == {"listener": "OSError: death 2"}
        supervisor.troubles.clear()
        assert supervisor.troubles == {"listener": "OSError: death 2"}, "a copy"
        supervisor.well("feed")
        assert supervisor.troubles == {"listener": "OSError: death 2"}
        supervisor.well("listener")
        assert supervisor.troubles == {}


async def test_a_task_that_runs_steadily_counts_as_well_without_reporting_it(pauses: Pauses) -> None:
    async with Supervisor(pause=pauses, steady_seconds=0.05) as owner:
        task = Task(deaths=1)
        owner.start("feed", task.run)
        await seen(task.running)
        assert owner.troubles == {"feed": "OSError: death 1"}
        await until(lambda: owner.troubles == {}, 5)


async def test_the_pauses_of_a_task_that_had_recovered_start_again_from_the_first(pauses: Pauses) -> None:
    async with Supervisor(pause=pauses, steady_seconds=0.01) as owner:
        task = Task(deaths=3, lasting=0.03)
        owner.start("feed", task.run)
        await seen(task.running)
    assert pauses.failures == [1, 1, 1]


async def test_a_task_that_returns_by_itself_shows_as_a_trouble(pauses: Pauses) -> None:
    started = asyncio.Event()
    forever = asyncio.Event()

    async def run() -> None:
        if started.is_set():
            await forever.wait()
        started.set()

    async with Supervisor(pause=pauses) as owner:
        owner.start("feed", run)
        await seen(started)
        await until(lambda: owner.troubles, 5)
        assert owner.troubles == {"feed": "RuntimeError: the task returned, though it should run until it is cancelled"}


async def test_the_death_of_one_task_does_not_affect_the_others(pauses: Pauses) -> None:
    async with Supervisor(pause=pauses) as owner:
        well, ill = Task(), Task(deaths=5)
        owner.start("well", well.run)
        owner.start("ill", ill.run)
        await seen(ill.running)
        assert (well.starts, well.ended.is_set()) == (1, False)


async def cleaning_up() -> None:
    """Take some turns of the event loop."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_stop_waits_for_the_end_of_the_task_and_removes_its_trouble(pauses: Pauses) -> None:
    order: list[str] = []

    async def slow(name: str) -> None:
        try:
            if not order:
                order.append("died")
                raise OSError("no")
            running.set()
            await asyncio.Event().wait()
        finally:
            await cleaning_up()
            order.append(f"{name} has cleaned up")

    async with Supervisor(pause=pauses) as owner:
        running = asyncio.Event()
        owner.start("one", lambda: slow("one"))
        await seen(running)
        assert owner.troubles == {"one": "OSError: no"}
        await owner.stop("one")
        assert order == ["died", "one has cleaned up", "one has cleaned up"]
        assert owner.troubles == {}
        await owner.stop("one")
        await owner.stop("never started")


async def test_a_task_can_be_stopped_during_the_pause_before_a_restart() -> None:
    pausing = asyncio.Event()

    def long(failures: int) -> float:
        pausing.set()
        return 3600

    async with asyncio.timeout(5), Supervisor(pause=long) as owner:
        owner.start("ill", Task(deaths=1).run)
        await seen(pausing)


async def test_on_exit_tasks_end_in_the_reverse_order_of_their_start() -> None:
    order: list[str] = []
    running: list[asyncio.Event] = []

    def named(name: str) -> Callable[[], Awaitable[None]]:
        up = asyncio.Event()
        running.append(up)

        async def run() -> None:
            up.set()
            try:
                await asyncio.Event().wait()
            finally:
                order.append(name)

        return run

    async with Supervisor() as owner:
        for name in ("doorbell", "appender", "feed"):
            owner.start(name, named(name))
        for up in running:
            await seen(up)
    assert order == ["feed", "appender", "doorbell"]


async def test_on_exit_all_tasks_are_cancelled_before_any_is_awaited() -> None:
    order: list[str] = []
    up = asyncio.Event()

    async def run() -> None:
        up.set()
        try:
            await asyncio.Event().wait()
        finally:
            order.append("cancelled")
            await cleaning_up()
            order.append("ended")

    async with Supervisor() as owner:
        for name in ("appender", "doorbell", "feed"):
            up.clear()
            owner.start(name, run)
            await seen(up)
    assert order == ["cancelled"] * 3 + ["ended"] * 3


async def test_each_farewell_gets_at_most_half_of_the_remaining_shutdown_time() -> None:
    said: list[str] = []

    async def brief(word: str) -> None:
        said.append(word)

    async def endless() -> None:
        await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    async with asyncio.timeout(5), Supervisor() as owner:
        owner.over_within(0.4)
        began = loop.time()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await owner.farewell(endless(), 60)
        assert loop.time() - began > 0.3, "each one takes half of the rest"
        await owner.farewell(brief("leases"), 60)
        with pytest.raises(TimeoutError):
            await owner.farewell(endless(), 0.001)
    assert said == ["leases"]


def test_pauses_before_restarts_double_up_to_a_limit_and_have_jitter() -> None:
    drawn = [[backoff(failures) for _ in range(200)] for failures in range(1, 12)]
    for n, pauses in enumerate(drawn):
        longest = min(10.0, 0.1 * 2**n)
        assert all(longest / 2 <= pause <= longest for pause in pauses)
        assert max(pauses) - min(pauses) > longest / 4, "jitter spreads them"
    assert all(max(earlier) <= max(later) * 1.2 for earlier, later in pairwise(drawn))
    assert backoff(10_000) <= 10
    assert backoff(3, first=1, longest=2) <= 2


async def test_a_stop_succeeds_though_the_task_raises_another_error_while_it_is_cancelled() -> None:
    runs, waiting = 0, asyncio.Event()

    async def run() -> None:
        nonlocal runs
        runs += 1
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ConnectionError("the connection died in the same moment")

    async with Supervisor() as owner:
        owner.start("projection", run)
        await waiting.wait()
        await asyncio.wait_for(owner.stop("projection"), 5)
    assert (runs, owner.troubles) == (1, {})
