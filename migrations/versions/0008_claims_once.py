"""Claims are looked through once a call."""

import re
from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0006"


def upgrade() -> None:
    _run(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    first = Path(__file__).with_name("0001_log.sql").read_text(encoding="utf-8")
    function = re.search(r"create (function headwater\.append\(.*?^end \$\$;)", first, re.DOTALL | re.MULTILINE)
    assert function is not None  # a migration is not changed any more
    _run(f"create or replace {function[1]}")


def _run(script: str) -> None:
    # The driver's own execute: a prepared statement holds one statement only.
    op.get_bind().connection.dbapi_connection.run_async(lambda connection: connection.execute(script))  # type: ignore[union-attr]  # asyncpg's adapter
