"""Which due moments of which schedule are dealt with."""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    script = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    # The driver's own execute: a prepared statement holds one statement only.
    op.get_bind().connection.dbapi_connection.run_async(lambda connection: connection.execute(script))  # type: ignore[union-attr]  # asyncpg's adapter


def downgrade() -> None:
    op.execute("drop table headwater.schedules")
