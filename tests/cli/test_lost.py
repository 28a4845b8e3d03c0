"""`headwater lost` and `headwater new-epoch`."""

from __future__ import annotations

import json
from uuid import uuid4

import asyncpg
from tests.support.commands import run_command


async def test_the_epochs_and_what_is_lost_are_listed(dsn: str, connection: asyncpg.Connection) -> None:
    environ = {"DATABASE_URL": dsn}
    code, printed, _ = await run_command("lost", environ=environ)
    assert code == 0
    assert "No lost position is known." in printed

    code, printed, _ = await run_command("new-epoch", "--reason", "restored\x1b[31m from files", environ=environ)
    assert (code, printed) == (
        0,
        "Epoch 2 of the log has begun. Every process drops what it knew, and reads again.\n",
    )
    stream, command = uuid4(), uuid4()
    await connection.execute(
        "insert into headwater.lost (tag, position, stream_id, version, command_id, type, known_by)"
        " select tag, 7, $1, 3, $2, 'Deposit', 'host/1' from headwater.epochs where epoch = 1",
        *(stream, command),
    )
    await connection.execute(
        "insert into headwater.lost (tag, position, known_by) select tag, 9, 'host/2' from headwater.epochs"
        " where epoch = 1"
    )
    code, printed, _ = await run_command("lost", environ=environ)
    assert code == 0
    assert "restored\\x1b[31m from files" in printed
    *_, one, other = printed.splitlines()
    assert one.split() == ["1", "7", str(stream), "3", "Deposit", str(command), "host/1"]
    assert other.split() == ["1", "9", "unknown", "unknown", "unknown", "unknown", "host/2"]

    code, printed, _ = await run_command("lost", "--json", environ=environ)
    report = json.loads(printed)
    assert [each["reason"] for each in report["epochs"]] == ["the log was created", "restored\x1b[31m from files"]
    assert [each["position"] for each in report["lost"]] == [7, 9]
