"""Commands print in every encoding, and end quietly when the reader of a pipe has gone."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from tests.support.commands import ROOT, clean_environ
from tests.support.executing import accepted

from bank.users.domain import RegisterUser

PRELUDE = """
import logging
import sys
from headwater.cli import output
from headwater.cli.output import answer, complain, exit_code_of, flush_quietly, json_text, print_document
from headwater.cli.terminal import aligned, printable

output.accept_any_text()
logging.basicConfig(level="INFO", format="%(message)s")
"""

ENDINGS = (
    PRELUDE
    + """
def few_lines_then_1():
    print("one line")
    return 1

def many_lines():
    for number in range(100_000):
        print(number)
    return 1

def answer_with_1():
    return answer(map(str, range(100_000)), 1)

def answer_with_0():
    return answer(map(str, range(100_000)), 0)

def more_after_the_answer():
    code = answer_with_1()
    print("more")
    return code

def complaint():
    logging.info("a line of the log")
    return complain("something is wrong")

code = exit_code_of(globals()[sys.argv[1]])
flush_quietly()
sys.exit(code)
"""
)

ENCODINGS = ("utf-8", "ascii", "ascii:strict", "latin-1", "cp1252")


def environ(**more: str) -> dict[str, str]:
    """An environment in which Python buffers its output, as it does for commands."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | more


@pytest.mark.parametrize(
    "command, code",
    [
        ("few_lines_then_1", 1),
        ("many_lines", 0),
        ("answer_with_1", 1),
        ("answer_with_0", 0),
        ("more_after_the_answer", 1),
    ],
)
def test_a_reader_that_has_gone_ends_a_command_quietly_and_keeps_a_known_exit_code(command: str, code: int) -> None:
    ended = _run_into_closed_pipe(command, stdout=True)
    assert (ended.returncode, ended.stderr) == (code, "")


def test_a_reader_of_standard_error_that_has_gone_does_not_change_the_exit_code() -> None:
    ended = _run_into_closed_pipe("complaint", stdout=False)
    assert (ended.returncode, ended.stdout) == (1, "")


def test_a_reader_that_stays_gets_every_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ENDINGS, "answer_with_1"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, len(ended.stdout.splitlines()), ended.stderr) == (1, 100_000, "")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_that_the_encoding_lacks_is_escaped_on_both_streams(encoding: str) -> None:
    script = 'print("é 😀 \\udcff"); complain("é 😀"); logging.info("é 😀")'
    ended = _print(script, encoding)
    name = encoding.partition(":")[0]
    expected = ["é 😀 \udcff", "headwater: é 😀", "é 😀"]
    printed = [line.decode(name) for line in (ended.stdout + ended.stderr).splitlines()]
    assert printed == [line.encode(name, "backslashreplace").decode(name) for line in expected]
    assert ended.returncode == 0


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_columns_stay_aligned_where_a_cell_is_escaped(encoding: str) -> None:
    script = 'print(aligned(("NAME", "NEXT"), [("😀", "x"), ("plain", "y")]))'
    lines = _print(script, encoding).stdout.decode(encoding.partition(":")[0]).splitlines()
    assert len({len(line) for line in lines}) <= 2, "a heading may be longer than the last cell"
    assert lines[1].index("x") == lines[2].index("y") == lines[0].index("NEXT")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_is_the_same_value_in_every_encoding(encoding: str) -> None:
    ended = _print('print(json_text(\'{"é":"😀 \\\\n"}\'))', encoding)
    assert json.loads(ended.stdout.decode("utf-8")) == {"é": "😀 \n"}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_document_is_utf8_in_a_pipe_of_any_encoding(encoding: str) -> None:
    assert _print('print_document("é 😀\\n")', encoding).stdout.decode("utf-8") == "é 😀\n"


async def test_events_and_their_tree_are_printed_to_an_ascii_terminal(start: Callable[..., Any], dsn: str) -> None:
    node, command_id = await start(work=False), uuid4()
    command = RegisterUser(user_id=uuid4(), email="ada@example.org", name="Ada 😀")
    await accepted(node, command, command_id=command_id)
    streams = clean_environ() | {"DATABASE_URL": dsn, "PYTHONIOENCODING": "ascii:strict", "LANG": "C"}
    for arguments in (["tail"], ["trace", str(command_id)]):
        code, out, err = await asyncio.to_thread(_headwater, "events", *arguments, environ=streams)
        assert (code, err, r"Ada \U0001f600" in out) == (0, "", True)
    code, out, err = await asyncio.to_thread(_headwater, "events", "tail", "--json", environ=streams)
    assert (code, err, json.loads(out)["data"]["name"]) == (0, "", "Ada 😀")


def _headwater(*arguments: str, environ: dict[str, str]) -> tuple[int, str, str]:
    """Run a command in a process of its own. Its streams have the encoding that the environment names."""
    run = [sys.executable, "-m", "headwater", *arguments]
    ended = subprocess.run(run, capture_output=True, check=False, env=environ, cwd=ROOT)
    return ended.returncode, ended.stdout.decode("ascii"), ended.stderr.decode("ascii")


def _print(script: str, encoding: str) -> subprocess.CompletedProcess[bytes]:
    run = [sys.executable, "-c", f"{PRELUDE}\n{script}"]
    return subprocess.run(run, capture_output=True, check=False, env=environ(PYTHONIOENCODING=encoding))


def _run_into_closed_pipe(command: str, *, stdout: bool) -> subprocess.CompletedProcess[str]:
    """Run a command whose standard output, or else standard error, is a pipe that has no reader."""
    read, write = os.pipe()
    os.close(read)
    streams = {"stdout": write, "stderr": subprocess.PIPE} if stdout else {"stdout": subprocess.PIPE, "stderr": write}
    run = [sys.executable, "-c", ENDINGS, command]
    try:
        return subprocess.run(run, text=True, check=False, env=environ(), **streams)  # type: ignore[call-overload,no-any-return]  # by name, either way round
    finally:
        os.close(write)
