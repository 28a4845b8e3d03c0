"""Each record of the log is one line: text in a terminal, JSON elsewhere; each names what was being handled."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from tests.support.commands import ROOT, clean_environ

from headwater.logs import JSONForm, TextForm, handling

ID = UUID(int=7)
NODE = f"{socket.gethostname()}/{os.getpid()}"


@contextmanager
def logging_to(form: logging.Formatter) -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """A logger whose lines have this form, and what it has written."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(form)
    logger = logging.getLogger("tests.logs")
    logger.addHandler(handler)
    logger.propagate = False  # half a surrogate pair in a captured line would end pytest's worker
    try:
        yield logger, written
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


def fail(logger: logging.Logger, message: str) -> None:
    """Log a message with the traceback of an error."""
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception(message)


def test_a_line_of_json_has_time_level_node_logger_and_message() -> None:
    with logging_to(JSONForm()) as (logger, written):
        logger.warning("%d of %s", 3, "ü\n\ud800")
    (line,) = written.getvalue().splitlines()
    fields: dict[str, Any] = json.loads(line)
    assert datetime.fromisoformat(fields.pop("time")).tzinfo is not None
    assert fields == {"level": "WARNING", "node": NODE, "logger": "tests.logs", "message": "3 of ü\n\ud800"}
    assert line.isascii()


def test_a_line_of_text_has_the_same() -> None:
    with logging_to(TextForm()) as (logger, written):
        logger.warning("%d of %s", 3, "things")
    time, rest = written.getvalue().split(" ", 1)
    assert datetime.fromisoformat(time).tzinfo is not None
    assert rest == f"WARNING {NODE} tests.logs: 3 of things\n"


def test_a_traceback_is_one_field_of_json() -> None:
    with logging_to(JSONForm()) as (logger, written):
        fail(logger, "it failed")
    (line,) = written.getvalue().splitlines()
    traceback = json.loads(line)["traceback"]
    assert traceback.startswith("Traceback (most recent call last):\n")
    assert traceback.endswith("ValueError: two\nlines")


def test_a_message_cannot_begin_a_line_nor_control_the_terminal() -> None:
    with logging_to(TextForm()) as (logger, written):
        logger.warning("one\ntwo \x1b[31m \u2028 %s", "\r")
    assert written.getvalue().count("\n") == 1
    assert written.getvalue().endswith("one\\ntwo \\x1b[31m \\u2028 \\r\n")


def test_a_traceback_in_text_follows_on_lines_of_its_own_without_control_characters() -> None:
    with logging_to(TextForm()) as (logger, written):
        try:
            raise ValueError("\x1b[31m")
        except ValueError:
            logger.exception("it failed")
    first, second, *_, last = written.getvalue().splitlines()
    assert first.endswith("tests.logs: it failed")
    assert second == "Traceback (most recent call last):"
    assert last == "ValueError: \\x1b[31m"


@pytest.mark.parametrize("form", [JSONForm(), TextForm()])
def test_a_line_names_the_correlation_and_the_actor_of_what_is_handled(form: logging.Formatter) -> None:
    with logging_to(form) as (logger, written):
        with handling(ID, "saga Transfer"):
            logger.warning("within")
        logger.warning("after")
    within, after = written.getvalue().splitlines()
    if isinstance(form, JSONForm):
        assert json.loads(within) | {"actor": "saga Transfer", "correlation_id": str(ID)} == json.loads(within)
        assert json.loads(after).keys() == {"time", "level", "node", "logger", "message"}
    else:
        assert within.endswith(f": within actor=saga Transfer correlation_id={ID}")
        assert after.endswith(": after")


async def test_what_is_handled_is_of_one_task() -> None:
    with logging_to(JSONForm()) as (logger, written):
        inside, outside = asyncio.Event(), asyncio.Event()

        async def handle() -> None:
            with handling(ID):
                inside.set()
                await outside.wait()
                logger.warning("handled")

        task = asyncio.create_task(handle())
        await inside.wait()
        logger.warning("beside")
        outside.set()
        await task
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [(line["message"], line.get("correlation_id")) for line in lines] == [("beside", None), ("handled", str(ID))]


CONFIGURED = """
import io, logging, sys, threading, warnings
from headwater.logs import configure, is_json
class Terminal(io.StringIO):
    def isatty(self):
        return True
terminal = Terminal()
configure(sys.argv[1], "info", terminal if sys.argv[2] == "terminal" else None)
print(is_json())
logging.getLogger("alembic").info("hidden")
logging.getLogger("uvicorn.error").info("hidden")
logging.getLogger("mine").debug("hidden")
logging.getLogger("mine").info("shown")
warnings.warn("old")
thread = threading.Thread(target=lambda: 1 / 0, name="aside")
thread.start()
thread.join()
sys.stderr.write(terminal.getvalue())
raise SystemError("the end")
"""


def configured(form: str, stream: str) -> tuple[str, list[str]]:
    """Run a process that configures its log. Returns what it printed, and its lines on standard error."""
    command = [sys.executable, "-c", CONFIGURED, form, stream]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=clean_environ())
    return ended.stdout.strip(), ended.stderr.splitlines()


def test_everything_that_a_process_writes_is_json_where_no_terminal_is() -> None:
    printed, lines = configured("auto", "pipe")
    assert printed == "True"
    records = [json.loads(line) for line in lines]
    assert [(record["level"], record["logger"]) for record in records] == [
        ("INFO", "mine"),
        ("WARNING", "py.warnings"),
        ("CRITICAL", "headwater.logs"),
        ("CRITICAL", "headwater.logs"),
    ]
    assert "ends the thread aside: ZeroDivisionError" in records[2]["message"]
    assert "ends this process: SystemError('the end')" in records[3]["message"]


def test_json_can_be_set_for_a_terminal() -> None:
    printed, (shown, *_) = configured("json", "terminal")
    assert (printed, json.loads(shown)["message"]) == ("True", "shown")


@pytest.mark.parametrize("form, stream", [("auto", "terminal"), ("text", "pipe")])
def test_it_is_text_in_a_terminal_or_when_set(form: str, stream: str) -> None:
    printed, lines = configured(form, stream)
    assert printed == "False"
    assert any(re.search(r" INFO \S+/\d+ mine: shown$", line) for line in lines)
    assert not any("hidden" in line for line in lines)
