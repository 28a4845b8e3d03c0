"""Instances of sagas that have not begun."""

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    # One statement to a call of the driver; its own execute takes them all.
    op.get_bind().connection.dbapi_connection.run_async(  # type: ignore[union-attr]  # asyncpg's adapter
        lambda connection: connection.execute(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
    )


def downgrade() -> None:
    op.execute("delete from headwater.sagas where version = 0")
    op.execute("alter table headwater.sagas drop constraint sagas_version_check")
    op.execute("alter table headwater.sagas add constraint sagas_version_check check (version > 0)")
