"""Workers tell how they get on."""

from headwater.postgres.migrations import run_script

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    run_script(__file__)
