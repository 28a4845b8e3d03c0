"""What a command says: complaints on standard error, and answers to readers who may leave."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def complain(sentence: str) -> int:
    """Say what is wrong. Returns the exit code, so that a command can end with it."""
    print(f"headwater: {sentence}", file=sys.stderr)
    return 1


def into_the_pipe(command: Callable[[], int | None]) -> int:
    """Run a command to its exit code. Whoever reads what it prints may go, as `head` does: that ends it, and is no
    fault."""
    try:
        code = command() or 0
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed goes nowhere
        return 0
    return code
