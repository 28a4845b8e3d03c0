"""A short way into the log for the commands that most calls are made of."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    script = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    # The driver's own execute: a prepared statement holds one statement only.
    op.get_bind().connection.dbapi_connection.run_async(lambda connection: connection.execute(script))  # type: ignore[union-attr]  # asyncpg's adapter


def downgrade() -> None:
    op.execute("drop function headwater.append_plain")
