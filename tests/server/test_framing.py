"""Whatever bytes a client sends, no answer is given to those that were a body. Seeded: a failure can be repeated."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from statistics import quantiles

import pytest
from tests.support.raw import Client, Recorder, Serving, serving
from tests.support.requests import Sent, changed, malformed, requests_in, socket_with_body, well_formed

CLIENTS = 600
AT_ONCE = 30
WAITING = 200
"""Clients at once, where many of them wait for a deadline of the server."""

MOST_REQUESTS = 3
BYSTANDER_SECONDS = 5.0
"""99 of 100 answers to another client take less than this, also on a busy machine."""

LAST = b"GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

Make = Callable[[Random, int], Sent]


@dataclass
class Exchange:
    """What a client sent, in how many pieces, and the status and the body of each answer."""

    sent: list[Sent]
    pieces: int
    answers: list[tuple[int, bytes]]

    @property
    def data(self) -> bytes:
        return b"".join(each.data for each in self.sent) + LAST


async def test_well_formed_requests_are_answered_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(app := Recorder()) as server:
        for each in await _exchanges(server, well_formed):
            assert [_path(answer) for answer in each.answers] == [*(sent.answered for sent in each.sent), "/last"], each
    assert not _smuggled(app)
    assert not _faults(caplog)


@pytest.mark.parametrize("make", [malformed, socket_with_body])
async def test_malformed_requests_are_refused(caplog: pytest.LogCaptureFixture, make: Make) -> None:
    async with serving(app := Recorder()) as server:
        for each in await _exchanges(server, make):
            assert _is_expected(each, [400]), each
    assert not _smuggled(app)
    assert not _faults(caplog)


async def test_malformed_requests_behind_well_formed_ones_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    def make(random: Random, number: int) -> Sent:
        return (malformed if number % MOST_REQUESTS == MOST_REQUESTS - 1 else well_formed)(random, number)

    async with serving(app := Recorder()) as server:
        for each in await _exchanges(server, make):
            complete = len(each.sent) == MOST_REQUESTS
            assert _is_expected(each, [200, 200, 400] if complete else [200] * (len(each.sent) + 1)), each
    assert not _smuggled(app)
    assert not _faults(caplog)


async def test_a_changed_byte_makes_no_request_of_a_body(caplog: pytest.LogCaptureFixture) -> None:
    def make(random: Random, number: int) -> Sent:
        return (well_formed if number % MOST_REQUESTS else changed)(random, number)

    async with serving(app := Recorder(body_seconds=2), head_seconds=2) as server:
        exchanges = await _exchanges(server, make, WAITING)
    found = {path for each in exchanges for path in requests_in(each.data)}
    assert [path for path in _smuggled(app) if path not in found] == []
    for each in exchanges:
        assert len(each.answers) <= len(each.data.split(b" HTTP/")), each
    assert not _faults(caplog)


def _is_expected(exchange: Exchange, statuses: list[int]) -> bool:
    """True for these answers. A client that still sends when the server closes may lose the last ones."""
    got = [status for status, _ in exchange.answers]
    return got == (statuses if exchange.pieces == 1 else statuses[: len(got)])


async def _exchanges(server: Serving, make: Make, at_once: int = AT_ONCE) -> list[Exchange]:
    """Let many clients send requests, while another client asks, too."""
    times: list[float] = []
    asking = asyncio.create_task(_bystander(server, times))
    exchanges: list[Exchange] = []
    for first in range(0, CLIENTS, at_once):
        turns = range(first, first + at_once)
        exchanges += await asyncio.gather(*[_exchange(await server.client(), make, turn) for turn in turns])
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled(), asking.exception()
    assert quantiles(times, n=100)[-1] < BYSTANDER_SECONDS
    return exchanges


async def _exchange(client: Client, make: Make, turn: int) -> Exchange:
    random = Random(turn)
    first = turn * MOST_REQUESTS
    sent = [make(random, number) for number in range(first, first + random.randint(1, MOST_REQUESTS))]
    exchange = Exchange(sent, 1, [])
    pieces = _pieces(random, exchange.data)
    reading = asyncio.create_task(client.closed())
    await client.send_apart(*pieces)
    return Exchange(sent, len(pieces), list(_answers(await reading)))


def _pieces(random: Random, data: bytes) -> list[bytes]:
    cuts = sorted(random.sample(range(1, len(data)), random.choice([0, 0, 1, 3, 30])))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _answers(received: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the status and the body of each final response."""
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 1"):
            continue
        (length,) = map(int, re.findall(rb"(?i)\r\ncontent-length: (\d+)", head))
        yield int(head.split(b" ")[1]), received[:length]
        received = received[length:]


def _path(answer: tuple[int, bytes]) -> str:
    return answer[1].split(b" ")[1].decode()


def _smuggled(app: Recorder) -> list[str]:
    """Return the paths that the application was asked for although they stood in a body."""
    paths = (each.split(b" ")[1].decode() for each in app.asked)
    return [path for path in paths if not path.startswith("/asked/") and path not in ("/last", "/")]


def _faults(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [each for each in caplog.records if each.exc_info or each.levelno >= logging.ERROR]


async def _bystander(server: Serving, times: list[float]) -> None:
    while True:
        client = await server.client()
        with suppress(ConnectionError, asyncio.IncompleteReadError):  # on a busy machine it may miss the deadline, too
            while True:
                start = time.perf_counter()
                client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert (await client.answer())[0] == 200
                times.append(time.perf_counter() - start)
