"""Names the setting at fault when a database cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from headwater.errors import SettingsError
from headwater.postgres.database import UNREACHABLE


@contextmanager
def reaching(variable: str = "DATABASE_URL") -> Iterator[None]:
    """Report a database that cannot be reached, and an address that makes no sense, as a fault of a variable."""
    try:
        yield
    except asyncpg.ClientConfigurationError as error:
        raise SettingsError(f"{variable} cannot be used ({error}); change the setting") from error
    except UNREACHABLE as error:
        raise SettingsError(
            f"{variable}: the database cannot be reached ({error}); start it, or change the setting"
        ) from error
