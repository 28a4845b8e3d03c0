"""Every process tells how it gets on."""

from headwater.postgres.migrations import run_script

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    run_script(__file__)
