"""What a command says: complaints on standard error, and answers to readers who may leave."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def complain(sentence: str) -> int:
    """Say what is wrong. Returns the exit code, so that a command can end with it."""
    print(f"headwater: {sentence}", file=sys.stderr)
    return 1


@contextmanager
def leaving_the_pipe() -> Iterator[None]:
    """Whoever reads what is printed may go, as `head` does: that ends the command, and is no fault."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed goes nowhere
