"""Tombstones end."""

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    # One statement to a call of the driver; its own execute takes them all.
    op.get_bind().connection.dbapi_connection.run_async(  # type: ignore[union-attr]  # asyncpg's adapter
        lambda connection: connection.execute(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
    )


def downgrade() -> None:
    op.execute("alter table headwater.projections drop column forgotten")
