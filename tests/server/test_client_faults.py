"""What clients do wrong fills no log: one line for the first of a kind, then one for all of a minute."""

from __future__ import annotations

import asyncio
import logging

import pytest
from tests.support.listening import frame
from tests.support.raw import Recorder, serving
from tests.support.waiting import until
from websockets.frames import Close, Frame, Opcode

from headwater.server.client_faults import ClientFaults
from headwater.server.slow_reader import NOT_UTF8
from headwater.server.upgrade import INVALID

logger = logging.getLogger("test")

UPGRADE = (
    b"GET /socket HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert not [each for each in caplog.records if each.exc_info], "a client causes no traceback"
    return [each.getMessage() for each in caplog.records]


async def test_a_fault_is_logged_at_once_and_its_repetitions_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    faults = ClientFaults(seconds=0.05)
    for _ in range(1_000):
        faults.log(logger, "Nonsense.")
    faults.log(logger, "Another kind.")
    counted = ["Nonsense.", "Another kind.", "Nonsense. (999 more within 0.05 s)"]
    await until(lambda: lines(caplog) == counted)
    faults.log(logger, "Nonsense.")
    faults.log(logger, "Another kind.")
    counted += ["Another kind.", "Nonsense. (1 more within 0.05 s)"]
    await until(lambda: lines(caplog) == counted)


async def test_a_fault_after_a_quiet_time_is_logged_at_once_again(caplog: pytest.LogCaptureFixture) -> None:
    faults, later = ClientFaults(seconds=0.01), asyncio.Event()
    faults.log(logger, "Nonsense.")
    asyncio.get_running_loop().call_later(0.011, later.set)  # timers run in the order of their times
    await later.wait()
    faults.log(logger, "Nonsense.")
    assert lines(caplog) == ["Nonsense."] * 2


async def test_malformed_requests_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Recorder()) as server:
        for _ in range(50):
            client = await server.client()
            client.send(b"nonsense\r\n\r\n")
            assert (await client.answer())[0] == 400
    assert lines(caplog) == [INVALID]


async def test_messages_that_are_not_utf_8_are_one_line_and_closed_with_1007(
    caplog: pytest.LogCaptureFixture,
) -> None:
    closing = Frame(Opcode.CLOSE, Close(1007, "").serialize()).serialize(mask=False)
    async with serving(Recorder()) as server:
        for parts in ([frame(Opcode.TEXT, b"\xff")] * 2, [frame(Opcode.TEXT, b"\xc3", fin=False), frame(Opcode.CONT)]):
            client = await server.client()
            client.send(UPGRADE)
            assert (await client.head())[0] == 101
            client.send(*parts)
            assert await client.closed() == closing
        client = await server.client()
        client.send(UPGRADE)
        await client.head()
        client.send(frame(Opcode.TEXT, b"\xc3", fin=False), frame(Opcode.CONT, b"\xa4"))
        assert (await client.exactly(4))[2:].decode() == "ä", "a character may be split"
    assert lines(caplog) == [NOT_UTF8]
