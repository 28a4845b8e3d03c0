"""The log, and what is kept beside it."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    script = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    # The driver's own execute: a prepared statement holds one statement only.
    op.get_bind().connection.dbapi_connection.run_async(lambda connection: connection.execute(script))  # type: ignore[union-attr]  # asyncpg's adapter


def downgrade() -> None:
    raise RuntimeError("The log is never dropped by a migration; restore a backup, or drop the database by hand.")
