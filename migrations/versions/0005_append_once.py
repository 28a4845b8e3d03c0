"""The short way into the log, shorter."""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    _run(Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    op.execute("drop function headwater.append_plain")
    _run(Path(__file__).with_name("0002_append_plain.sql"))


def _run(script: Path) -> None:
    # The driver's own execute: a prepared statement holds one statement only.
    op.get_bind().connection.dbapi_connection.run_async(  # type: ignore[union-attr]  # asyncpg's adapter
        lambda connection: connection.execute(script.read_text(encoding="utf-8"))
    )
