"""Which due moments of which schedule are dealt with."""

from headwater.postgres.migrations import run_script

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run_script(__file__)
