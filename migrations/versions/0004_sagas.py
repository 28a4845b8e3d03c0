"""Sagas as operators see them, and the messages that fall due."""

from headwater.postgres.migrations import run_script

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run_script(__file__)
