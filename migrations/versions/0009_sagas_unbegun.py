"""Instances of sagas that have not begun, since the event that was to begin them fails."""

from headwater.postgres.migrations import run_script

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    run_script(__file__)
