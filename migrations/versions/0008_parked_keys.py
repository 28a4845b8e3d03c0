"""Parked keys are counted by an index."""

from headwater.postgres.migrations import run_script

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    run_script(__file__)
