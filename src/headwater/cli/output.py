"""Writes what a command prints: to any terminal, file or pipe, in any encoding, also when its reader has gone.

`main` calls `accept_any_text` first and runs the command by `exit_code_of`; commands print as usual.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable
from typing import TextIO


def accept_any_text() -> None:
    """Make standard output and standard error escape what their encoding lacks (`\\U0001f600`) instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def encodable(text: str) -> str:
    """Return the text with each character that standard output cannot encode escaped, so that its width is known."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def json_text(text: str) -> str:
    """Return JSON that is valid in the encoding of standard output.

    JSON's own escapes stand for all that is not ASCII, unless standard output is UTF-8.
    """
    return text if _is_utf8(sys.stdout) else "".join(each if each.isascii() else _json_escape(each) for each in text)


def print_document(text: str) -> None:
    """Print a document that is UTF-8 by definition: its bytes go unchanged to a file or a pipe of any encoding."""
    if _is_utf8(sys.stdout) or sys.stdout.isatty() or not isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.write(text)
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode())


def complain(sentence: str) -> int:
    """Print an error on standard error. Returns exit code 1, so that a command can end with it."""
    try:
        print(f"headwater: {sentence}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        _discard(sys.stderr)
    return 1


def exit_code_of(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code.

    A reader that closes the pipe, as `head` does, ends the command quietly. The exit code is then 0, unless the command
    has returned another one before its last output was flushed.
    """
    code = 0
    try:
        code = command() or 0
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
    return code


def answer(lines: Iterable[str], code: int) -> int:
    """Print the lines of a command whose exit code is known. Returns that code, also when the reader has gone."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
    return code


def flush_quietly() -> None:
    """Flush both streams, so that the interpreter has nothing left to fail on when it exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            _discard(stream)


def _discard(stream: TextIO) -> None:
    """Send the rest of a stream, and what its buffer still holds, to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _is_utf8(stream: TextIO) -> bool:
    return (stream.encoding or "utf-8").lower().replace("_", "-") in ("utf-8", "utf8")


def _json_escape(character: str) -> str:
    """Return `\\uXXXX` for a character; two of them, a surrogate pair, for one beyond the basic plane."""
    units = character.encode("utf-16-be").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))
