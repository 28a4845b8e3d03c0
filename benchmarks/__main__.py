"""`make bench`, or `python -m benchmarks [NAME ...]`: runs benchmarks and prints each figure beside its floor.

`python -m benchmarks soaking --times 30` soaks for about an hour instead of two minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
from datetime import UTC, datetime
from functools import partial

import uvloop

from benchmarks import appending, projecting, rebuilding, snapshots, soaking, subscribing, transferring, validating
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
    "soaking": soaking.run,
}


async def main(names: list[str], times: int) -> None:
    """Run the named benchmarks, or all of them. times: how often the soak does its work."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"\n  {datetime.now(UTC).date()}, {machine}\n")
    gc.collect()
    gc.freeze()  # as `headwater serve` and `work` do
    benchmarks = BENCHMARKS | {"soaking": partial(soaking.run, times=times)}
    with server() as postgres:
        for name in names or benchmarks:
            for figure in await benchmarks[name](postgres):
                print(figure, flush=True)


parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run benchmarks, by default all of them.")
parser.add_argument("names", nargs="*", metavar="NAME", choices=[*BENCHMARKS, []], help=", ".join(BENCHMARKS))
parser.add_argument("--times", type=int, default=1, help="how often the soak does its work")
arguments = parser.parse_args()

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main(arguments.names, arguments.times))
