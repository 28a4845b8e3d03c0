"""The log keeps the names of commands."""

from headwater.postgres.migrations import run_script

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    run_script(__file__)
