"""Statements: a reactor that appends a line for each movement to the account's CSV file.

`BANK_STATEMENTS` names the folder; without it no file is written. A line is `key,time,what,amount,balance`. The key is
the idempotency key of the event: a movement that is delivered twice is written once.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path
from typing import assert_never

from bank.accounts.domain import (
    MoneyDeposited,
    MoneyWithdrawn,
    Movement,
    TransferReceived,
    TransferReturned,
    TransferSent,
)
from headwater import Reactor, Recorded

FOLDER = "BANK_STATEMENTS"
TAIL_BYTES = 256 * 1024
"""The end of the file that is searched for the key: far more than can be delivered again."""


async def write_statement(event: Recorded[Movement], key: str) -> None:
    folder = os.environ.get(FOLDER)
    if folder:
        file = Path(folder) / f"{event.data.account_id}.csv"
        await asyncio.to_thread(append_once, file, key, _line(event, key))


def _line(event: Recorded[Movement], key: str) -> str:
    movement = event.data
    balance = "" if movement.balance is None else f"{movement.balance:f}"
    return f"{key},{event.recorded_at.isoformat()},{_what(movement)},{movement.amount:f},{balance}"


def _what(movement: Movement) -> str:
    match movement:
        case MoneyDeposited():
            return "deposit"
        case MoneyWithdrawn():
            return "withdrawal"
        case TransferSent():
            return "transfer sent"
        case TransferReceived():
            return "transfer received"
        case TransferReturned():
            return "transfer returned"
        case _:
            assert_never(movement)


def append_once(file: Path, key: str, line: str) -> None:
    """Append a line that begins with its key, unless the file has one with that key. The line is flushed to disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b", buffering=0) as statement:
        fcntl.flock(statement, fcntl.LOCK_EX)  # a worker that lost its lease may still be writing
        end = statement.seek(0, os.SEEK_END)
        start = statement.seek(max(0, end - TAIL_BYTES))
        *whole, torn = statement.read().split(b"\n")
        if torn:  # its writer died, and the movement is delivered again
            end = start + sum(len(each) + 1 for each in whole)
            statement.truncate(end)
        if not any(each.startswith(f"{key},".encode()) for each in whole):
            data = f"{line}\n".encode()
            if statement.write(data) != len(data):
                raise OSError(f"no room for the whole line in {file}")
        os.fsync(statement.fileno())


statements = Reactor("statements", write_statement)
