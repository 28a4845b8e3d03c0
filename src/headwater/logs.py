"""The form of a process's log: one line a record, as text in a terminal and as JSON elsewhere.

Modules log by `logging.getLogger(__name__)`. The command line calls `configure` once. Where a request or a command
enters, `handling` names it, and each line that is logged on its behalf carries its correlation id and its actor.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from types import TracebackType
from typing import Literal, TextIO, TypeAlias
from uuid import UUID

logger = logging.getLogger(__name__)

Form: TypeAlias = Literal["auto", "text", "json"]
"""The form of the lines. `auto`: text if they go to a terminal, else JSON."""

QUIET = ("alembic", "uvicorn")
"""Loggers that report each start and each socket at INFO. What matters of it, the commands report."""


Handled: TypeAlias = tuple[UUID | None, str | None]
"""The correlation id of the request or command that is handled, and the actor that caused it; None where unknown."""

HANDLED: ContextVar[Handled] = ContextVar("handled", default=(None, None))
"""The command or request that this task handles. Set by `handling`, or directly where a context manager costs too
much."""


@contextmanager
def handling(correlation_id: UUID | None, actor: str | None = None) -> Iterator[None]:
    """Give the lines that are logged in the block, and in tasks that begin in it, this correlation id and actor."""
    token = HANDLED.set((correlation_id, actor))
    try:
        yield
    finally:
        HANDLED.reset(token)


def node_name() -> str:
    """Return the name of this process in logs and in `headwater status`: host/pid."""
    return f"{socket.gethostname()}/{os.getpid()}"


class TextForm(logging.Formatter):
    """Formats a record as a line of text. A traceback follows on lines of its own.

    Control characters are escaped: what a client has sent must not control the terminal, nor begin a new line.
    """

    def __init__(self) -> None:
        super().__init__()
        self._node = node_name()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a line break at its end."""
        given = "".join(f" {name}={_printable(value)}" for name, value in _handled().items())
        message = _printable(record.getMessage())
        line = f"{_time_of(record)} {record.levelname} {self._node} {record.name}: {message}{given}"
        return "\n".join([line, *map(_printable, _traceback_of(self, record).splitlines())])


class JSONForm(logging.Formatter):
    """Formats a record as one line of JSON. A traceback is one of its fields."""

    def __init__(self) -> None:
        super().__init__()
        self._node = node_name()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a line break at its end. It is ASCII, and so valid in every encoding."""
        fields = {
            "time": _time_of(record),
            "level": record.levelname,
            "node": self._node,
            "logger": record.name,
            "message": record.getMessage(),
            **_handled(),
        }
        if traceback := _traceback_of(self, record):
            fields["traceback"] = traceback
        return json.dumps(fields)


def configure(form: Form, level: str, stream: TextIO | None = None) -> None:
    """Set up the log of this process.

    level: the lowest that is logged. stream: standard error by default. Warnings of Python are logged, too; with JSON,
    so is the exception that ends the process. Where the root logger has a handler already, that one stays alone.
    """
    stream = sys.stderr if stream is None else stream
    as_json = form == "json" or (form == "auto" and not stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONForm() if as_json else TextForm())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    if as_json:
        sys.excepthook = _log_uncaught
        threading.excepthook = _log_uncaught_in_thread


def is_json() -> bool:
    """True if this process's log is JSON: then nothing but records goes to standard output and standard error."""
    return any(isinstance(handler.formatter, JSONForm) for handler in logging.getLogger().handlers)


def _time_of(record: logging.LogRecord) -> str:
    """Return the local time of a record with its offset from UTC: `2026-11-29T09:37:12.123+01:00`."""
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


def _handled() -> dict[str, str]:
    correlation_id, actor = HANDLED.get()
    given = {"actor": actor, "correlation_id": correlation_id}
    return {name: str(value) for name, value in given.items() if value is not None}


def _traceback_of(form: logging.Formatter, record: logging.LogRecord) -> str:
    """Return the traceback of a record, and the stack that it asked for; empty if it has neither."""
    parts = []
    if record.exc_info:
        parts.append(form.formatException(record.exc_info))
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts)


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logger.critical("an error that nothing handled ends this process: %r", error, exc_info=(kind, error, trace))


def _log_uncaught_in_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None:
        name = "a thread" if ended.thread is None else ended.thread.name
        trace = (ended.exc_type, ended.exc_value, ended.exc_traceback)
        logger.critical("an error that nothing handled ends the thread %s: %r", name, ended.exc_value, exc_info=trace)
