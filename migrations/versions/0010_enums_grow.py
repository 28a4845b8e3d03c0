"""An enum of a read model may grow without its rows being made again."""

from headwater.postgres.migrations import run_script

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    run_script(__file__)
