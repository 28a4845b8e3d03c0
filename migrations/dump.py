"""Print the schema that the migrations make: `python migrations/dump.py`. Reviews read the diff of `schema.sql`."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys

import asyncpg

from headwater.postgres import embedded
from headwater.postgres.embedded import EmbeddedPostgres
from headwater.postgres.migrations import migrate

# Lines that differ between two dumps of one schema: versions, a random token, session settings.
_NOISE = re.compile(r"^(--.*|SET .*|SELECT pg_catalog\.set_config.*|\\(un)?restrict .*|)$\n?", re.MULTILINE)


def dump(postgres: EmbeddedPostgres, database: str) -> str:
    """Return the schema of a database as statements, without lines that differ from one dump to the next."""
    program = str(postgres.binaries / "pg_dump")
    command = [program, "--schema-only", "--no-owner", "--no-privileges", "--schema=headwater", postgres.dsn(database)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return _NOISE.sub("", done.stdout)


async def _migrated(postgres: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(postgres.dsn())
    await connection.execute("create database dumped")
    await connection.close()
    await migrate(postgres.dsn("dumped"))


def main() -> None:
    """Print the schema of a new database."""
    with embedded.temporary() as postgres:
        asyncio.run(_migrated(postgres))
        sys.stdout.write(dump(postgres, "dumped"))


if __name__ == "__main__":
    main()
