"""The log of a service as an operator's collector reads it: JSON only, from the start to the stop."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.support.commands import run_command

ROOT = Path(__file__).parents[2]


@pytest.fixture
def environ(clean_environ: dict[str, str], blank_dsn: str) -> dict[str, str]:
    """The environment of a deployment on an empty database."""
    return clean_environ | {"DATABASE_URL": blank_dsn}


def records(text: str) -> list[dict[str, Any]]:
    """Return the records of a log; fail if a line is none."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("command, doing", [("serve", "serves"), ("work", "works")])
async def test_a_service_writes_nothing_but_records_from_ready_to_stopped(
    headwater: Callable[..., Any], environ: dict[str, str], command: str, doing: str
) -> None:
    assert (await run_command("migrate", environ=environ))[0] == 0
    running = await headwater(command, **environ)
    await say_nonsense(running.url)
    assert await running.stop(signal.SIGTERM) == 0
    rest = (await running.process.stdout.read()).decode()
    found = records("".join(running.printed) + rest)
    assert [(each["level"], each["message"].split(" within ")[0]) for each in found] == [
        ("INFO", f"ready: Headwater 0.1.0 {doing}; health: {running.url}/health/ready"),
        ("WARNING", "Invalid HTTP request received."),
        ("INFO", "stopping: SIGTERM was received"),
        ("INFO", "stopped"),
    ]
    assert {each["logger"] for each in found} == {"headwater.cli.processes", "uvicorn.error", "headwater.cli.loop"}
    assert {each["node"].rpartition("/")[2] for each in found} == {str(running.process.pid)}


async def say_nonsense(url: str) -> None:
    """Send what is not HTTP, and wait for the answer."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b"nonsense\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()
    await writer.wait_closed()


async def test_a_service_that_cannot_start_says_why_in_a_record(environ: dict[str, str]) -> None:
    code, out, err = await run_command("serve", "--port", "0", environ=environ)
    (record,) = records(err)
    assert (code, out, record["level"]) == (1, "", "CRITICAL")
    assert record["message"] == "The database has no Headwater schema: run `headwater migrate`."


async def test_an_address_that_others_reach_is_logged_as_a_warning(
    headwater: Callable[..., Any], environ: dict[str, str]
) -> None:
    assert (await run_command("migrate", environ=environ))[0] == 0
    running = await headwater("serve", "--host", "0.0.0.0", **environ)
    assert await running.stop(signal.SIGTERM) == 0
    found = records("".join(running.printed) + (await running.process.stdout.read()).decode())
    assert [each["message"] for each in found if each["level"] == "WARNING"] == [
        f"every client that reaches {running.url} may do everything: there are no permissions yet"
    ]


async def test_a_service_prints_its_addresses_where_its_log_is_text(
    headwater: Callable[..., Any], environ: dict[str, str]
) -> None:
    assert (await run_command("migrate", environ=environ))[0] == 0
    running = await headwater("serve", **environ, HEADWATER_LOG_FORMAT="text")
    assert f"  GraphQL        {running.url}/graphql          (HTTP POST and GET)\n" in running.printed
    assert await running.stop(signal.SIGTERM) == 0
    lines = (await running.process.stdout.read()).decode().splitlines()
    assert [line.rpartition(": ")[0].split(" ")[1:2] for line in lines if "headwater.cli.loop" in line] == [
        ["INFO"],
        ["INFO"],
    ]
