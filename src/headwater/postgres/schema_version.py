"""Compares the version of the database's schema with the one that this code needs. `migrations` makes the schema."""

from __future__ import annotations

from pathlib import Path

import asyncpg

from headwater.errors import HeadwaterError


class SchemaMissing(HeadwaterError):
    """The database has no Headwater schema, or an older one than this version needs: run `headwater migrate`."""


def scripts() -> Path:
    """Return the folder of the migrations: inside the installed package, or at the top of a clone."""
    package = Path(__file__).parents[1]
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent.parent / "migrations"


async def require_schema(pool: asyncpg.Pool, folder: Path | None = None) -> None:
    """Check that the schema is the one that this code needs, or a newer one.

    A newer schema is accepted, because a rolling deploy migrates the database while older code still runs.

    Raises:
        SchemaMissing: there is no schema, or an older one.
    """
    found = None
    if not await pool.fetchval("select to_regclass('headwater.schema_version') is null"):
        found = await pool.fetchval("select version_num from headwater.schema_version")
    needed = _newest(folder or scripts())
    if found is None:
        raise SchemaMissing("The database has no Headwater schema: run `headwater migrate`.")
    if found < needed:
        raise SchemaMissing(
            f"The database's schema is version {found}, and this version of Headwater needs {needed}: run "
            "`headwater migrate`."
        )


def _newest(folder: Path) -> str:
    """Return the number of the last script: four digits, as the database stores it."""
    return max(path.stem for path in (folder / "versions").glob("[0-9]*.py"))[:4]
