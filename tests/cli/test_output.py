"""What a command ends with when whoever reads its answer has gone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COMMANDS = """
import sys
from headwater.cli.output import answer, into_the_pipe

def short():
    print("one line")
    return 1

def long():
    for number in range(100_000):
        print(number)
    return 1

def known():
    return answer(map(str, range(100_000)), 1)

def right():
    return answer(map(str, range(100_000)), 0)

def more():
    code = known()
    print("more")
    return code

sys.exit(into_the_pipe(globals()[sys.argv[1]]))
"""


@pytest.mark.parametrize("command, code", [("short", 1), ("long", 0), ("known", 1), ("right", 0), ("more", 1)])
def test_a_fault_that_was_found_stays_one(command: str, code: int) -> None:
    read, write = os.pipe()
    os.close(read)
    # As commands run: what is printed waits in a buffer.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    run = [sys.executable, "-c", COMMANDS, command]
    try:
        ended = subprocess.run(run, stdout=write, stderr=subprocess.PIPE, text=True, check=False, env=environ)
    finally:
        os.close(write)
    assert (ended.returncode, ended.stderr) == (code, "")


def test_what_is_read_is_the_whole() -> None:
    ended = subprocess.run([sys.executable, "-c", COMMANDS, "known"], capture_output=True, text=True, check=False)
    assert (ended.returncode, len(ended.stdout.splitlines()), ended.stderr) == (1, 100_000, "")
