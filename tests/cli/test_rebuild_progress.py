"""The progress of a rebuild, as `headwater rebuild` shows it."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import sys
from contextlib import closing
from uuid import uuid4

import asyncpg
import pytest
from tests.support.commands import ROOT, clean_environ
from tests.support.waiting import until

from bank.accounts.views import account_view
from headwater.cli.rebuild_progress import line
from headwater.projections.generations import fingerprint, prepare, rebuild

FULL = "#" * 30


@pytest.mark.parametrize(
    "done, total, folded, seconds, shown",
    [
        (0, 0, 0, 0.0, f"[{FULL}]  100%  0 of 0 events  indexes, sample, swap"),
        (0, 200, 0, 0.0, f"[{'':30}]    0%  0 of 200 events"),
        (50, 200, 0, 9.0, f"[{'#' * 7:30}]   25%  50 of 200 events"),
        (50, 200, -10, 9.0, f"[{'#' * 7:30}]   25%  50 of 200 events"),
        (50, 200, 50, 0.0, f"[{'#' * 7:30}]   25%  50 of 200 events"),
        (
            *(1_700_000, 5_000_000, 1_704_000, 24.0),
            f"[{'#' * 10:30}]   34%  1,700,000 of 5,000,000 events  71,000/s  0:46 left",
        ),
        (40, 100, 10, 10.0, f"[{'#' * 12:30}]   40%  40 of 100 events  1/s  1:00 left"),
        (0, 60_000, 1_000, 61.0, f"[{'':30}]    0%  0 of 60,000 events  16/s  61:00 left"),
        (2_999, 3_000, 100, 1.0, f"[{'#' * 29:30}]  100%  2,999 of 3,000 events  100/s  0:00 left"),
        (200, 200, 100, 1.0, f"[{FULL}]  100%  200 of 200 events  indexes, sample, swap"),
        (300, 200, 100, 1.0, f"[{FULL}]  100%  300 of 200 events  indexes, sample, swap"),
    ],
)
def test_a_line_shows_the_share_the_rate_and_the_time_left(
    done: int, total: int, folded: int, seconds: float, shown: str
) -> None:
    assert line("Account", done, total, folded, seconds) == f"Account  {shown}"


async def test_at_a_terminal_each_progress_line_overwrites_the_one_before(
    dsn: str, connection: asyncpg.Connection
) -> None:
    """The test acts as the worker: it advances the position when the terminal shows the previous one."""
    await prepare(connection, account_view)
    generation = (await rebuild(connection, account_view)).number
    runs = [f"{account_view.name} {fingerprint(account_view)}"]
    alive = "insert into headwater.workers (worker_id, name, runs, lease_until) values ($1, 'other/1', $2, 'infinity')"
    await connection.execute(alive, uuid4(), runs)
    await connection.execute("update headwater.head set position = 3000")

    async def advance_to(position: int) -> None:
        query = "update headwater.projections set position = $2 where name = 'Account' and generation = $1"
        await connection.execute(query, generation, position)

    await advance_to(1000)
    ours, theirs = pty.openpty()
    with closing(os.fdopen(ours, "rb", buffering=0)):
        seen = bytearray()

        def read() -> None:
            try:
                while some := os.read(ours, 4096):
                    seen.extend(some)
            except OSError:
                pass  # Linux reports a closed terminal as an error

        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "headwater", "rebuild", "Account"),
            cwd=ROOT,
            env=clean_environ() | {"DATABASE_URL": dsn},
            stdout=asyncio.subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)
        reading = asyncio.create_task(asyncio.to_thread(read))
        try:
            # Twice, so that time passes: a rate computed from the initial position would then appear.
            await until(lambda: seen.count(b"1,000 of 3,000 events") >= 2)
            await advance_to(2000)
            await until(lambda: b"2,000 of 3,000 events" in seen)
            await advance_to(3000)
            await until(lambda: b"3,000 of 3,000 events" in seen)
            for number, state in ((generation - 1, "retired"), (generation, "live")):
                query = "update headwater.projections set state = $2 where name = 'Account' and generation = $1"
                await connection.execute(query, number, state)
            out, _ = await asyncio.wait_for(process.communicate(), 20)
            await reading
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    assert (process.returncode, out) == (0, b"Account is live with its new rows, from position 3,000 on.\n")
    nothing, *lines = seen.decode().removesuffix("\r\n").split("\r\x1b[K")
    assert nothing == ""
    shown = [re.sub(r"[1-9][\d,]*/s  \d+:\d\d", "RATE  TIME", each) for each in lines]
    assert list(dict.fromkeys(shown)) == [
        f"Account  [{'#' * 10:30}]   33%  1,000 of 3,000 events",
        f"Account  [{'#' * 20:30}]   67%  2,000 of 3,000 events  RATE  TIME left",
        f"Account  [{FULL}]  100%  3,000 of 3,000 events  indexes, sample, swap",
    ]
