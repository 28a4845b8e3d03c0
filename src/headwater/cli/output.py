"""What a command says: complaints on standard error, and answers to readers who may leave."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable


def complain(sentence: str) -> int:
    """Say what is wrong. Returns the exit code, so that a command can end with it."""
    print(f"headwater: {sentence}", file=sys.stderr)
    return 1


def into_the_pipe(command: Callable[[], int | None]) -> int:
    """Run a command to its exit code. Whoever reads what it prints may go, as `head` does: that ends it, and is no
    fault. A fault that it has found stays one."""
    code = 0
    try:
        code = command() or 0
        sys.stdout.flush()
    except BrokenPipeError:
        _into_nowhere()
    return code


def answer(lines: Iterable[str], code: int) -> int:
    """Print the answer of a command that knows its exit code by now, and ends with it whoever reads on. Returns it."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        _into_nowhere()
    return code


def _into_nowhere() -> None:
    """Where what is still to be flushed goes, and what is printed from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
