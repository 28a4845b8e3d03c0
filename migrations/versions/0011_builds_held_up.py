"""A build says what is in the way of its swap."""

from headwater.postgres.migrations import run_script

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    run_script(__file__)
