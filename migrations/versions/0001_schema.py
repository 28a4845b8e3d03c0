"""The whole schema of Headwater's first release."""

from headwater.postgres.migrations import run_script

revision = "0001"
down_revision = None


def upgrade() -> None:
    run_script(__file__)
