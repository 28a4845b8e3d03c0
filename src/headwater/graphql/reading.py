"""Translates faults of the database into public errors, without the text of PostgreSQL."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import asyncpg

from headwater.errors import QueryTimedOut, Unavailable
from headwater.postgres.database import UNREACHABLE

logger = logging.getLogger(__name__)


@contextmanager
def reading(is_logged: Callable[[str, BaseException], bool]) -> Iterator[None]:
    """Translate the faults of the reads inside the block. is_logged: see `Outage.covers`.

    Raises:
        QueryTimedOut: a statement exceeded its timeout.
        Unavailable: the database cannot be reached, or has no room, as with a full disk.
    """
    try:
        yield
    except asyncpg.QueryCanceledError as error:
        raise QueryTimedOut(QueryTimedOut.__doc__) from error
    except UNREACHABLE as error:
        if not is_logged("reads", error):
            logger.warning("a read was answered UNAVAILABLE (%s)", str(error) or type(error).__name__)
        raise Unavailable("The database cannot be reached. Try again later.") from error
    except asyncpg.InsufficientResourcesError as error:
        if not is_logged("reads", error):
            logger.warning("a read was answered UNAVAILABLE (%s)", error)
        raise Unavailable("The database has no room to answer. Try again later.") from error
