"""`make bench`, or `python -m benchmarks [NAME ...]`: runs benchmarks and prints each figure beside its floor."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import sys
from datetime import UTC, datetime

import uvloop

from benchmarks import appending, projecting, rebuilding, snapshots, subscribing, transferring, validating
from benchmarks.ground import server

BENCHMARKS = {
    "appending": appending.run,
    "flat": appending.run_flat,
    "projecting": projecting.run,
    "rebuilding": rebuilding.run,
    "subscribing": subscribing.run,
    "snapshots": snapshots.run,
    "transferring": transferring.run,
    "validating": validating.run,
}


async def main(names: list[str]) -> None:
    """Run the named benchmarks, or all of them."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"\n  {datetime.now(UTC).date()}, {machine}\n")
    gc.collect()
    gc.freeze()  # as `headwater serve` and `work` do
    with server() as postgres:
        for name in names or BENCHMARKS:
            for figure in await BENCHMARKS[name](postgres):
                print(figure, flush=True)


with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main(sys.argv[1:]))
