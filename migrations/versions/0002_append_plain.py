"""A short way into the log for the commands that most calls are made of."""

from headwater.postgres.migrations import run_script

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run_script(__file__)
