"""A process that appends to the log: `writer.py DSN SHARED COMMANDS`, started by test_contiguity.

It deposits concurrently into a few accounts of its own and into one that all writers share, and prints each result as a
line `<command id> <position>`.
"""

from __future__ import annotations

import asyncio
import random
import sys
from decimal import Decimal
from itertools import count
from uuid import UUID

from tests.support.executing import unrefused

from bank.accounts.domain import Deposit, OpenAccount
from bank.main import app
from headwater import Refusal
from headwater.commands.dispatcher import Accepted, Dispatcher
from headwater.eventstore.appender import Appender
from headwater.eventstore.log import Log
from headwater.eventstore.positions import Positions
from headwater.ids import new_id
from headwater.postgres.database import Database
from headwater.supervisor import Supervisor

CALLERS = 8


def say(answer: Accepted | Refusal) -> None:
    """Print a result and flush it, so that a killed process has reported every result that it received."""
    accepted = unrefused(answer)
    sys.stdout.write(f"{accepted.command_id} {accepted.position}\n")
    sys.stdout.flush()


async def write(dsn: str, shared: UUID, commands: int) -> None:
    async with Database(dsn, pool_size=2) as database, Supervisor() as supervisor:
        appender = Appender(database, Positions())
        supervisor.start("appender", appender.run)
        dispatcher = Dispatcher(app.domain, Log(database.pool, app.domain.codec), appender)
        accounts = [new_id() for _ in range(4)]
        for account_id in accounts:
            say(await dispatcher.execute(OpenAccount(account_id=account_id, owner_id=new_id(), currency="EUR")))
        left = count(commands, -1)

        async def call() -> None:
            while next(left) > 0:
                account_id = random.choice([shared, *accounts])
                say(await dispatcher.execute(Deposit(account_id=account_id, amount=Decimal(1)), command_id=new_id()))

        await asyncio.gather(*(call() for _ in range(CALLERS)))


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1], UUID(sys.argv[2]), int(sys.argv[3])))
