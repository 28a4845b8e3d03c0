"""Faults of the database, as clients are told of them: what to do, and nothing of what PostgreSQL said."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from headwater.database import UNREACHABLE
from headwater.errors import QueryTimedOut, Unavailable

logger = logging.getLogger("headwater.graphql")

# asyncpg's complaint about itself is what a statement meets whose connection has been told to end, but not yet ended.
_AWAY: tuple[type[BaseException], ...] = (*UNREACHABLE, asyncpg.InternalClientError)


@contextmanager
def reading() -> Iterator[None]:
    """What a resolver reads.

    Raises:
        QueryTimedOut: a statement took longer than it may.
        Unavailable: the database cannot be reached.
    """
    try:
        yield
    except asyncpg.QueryCanceledError as error:
        raise QueryTimedOut(QueryTimedOut.__doc__) from error
    except _AWAY as error:
        # One line, not a traceback: every request says the same while the database is away.
        logger.warning("a read was answered UNAVAILABLE (%s)", str(error) or type(error).__name__)
        raise Unavailable("The database cannot be reached. Try again later.") from error
