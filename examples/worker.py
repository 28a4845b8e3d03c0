"""A worker of one's own: prints each deposit of the log, and every later one as it comes, until SIGTERM or Ctrl-C.

It leaves projections, sagas and reactors to `headwater work`. What must be done at least once for each event, such as
sending mail, belongs in a `Reactor`, which has a checkpoint.
"""

import asyncio
import signal

from bank.accounts.domain import MoneyDeposited
from bank.main import app


async def main() -> None:
    async with app.run(work=False) as bank:
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(each, bank.close)
        async for event in bank.events(MoneyDeposited, follow=True):
            print(f"{event.recorded_at:%Y-%m-%d %H:%M} {event.data.amount} into {event.stream_id}", flush=True)
    print("stopped")


if __name__ == "__main__":
    asyncio.run(main())
