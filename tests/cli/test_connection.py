"""Which URL the commands of the operator use, and which one an error names."""

from __future__ import annotations

import pytest
from tests.support.commands import run_command

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


async def test_an_operator_s_command_goes_past_the_pooler(dsn: str) -> None:
    code, printed, _ = await run_command("lost", environ={"DATABASE_URL": NOWHERE, "HEADWATER_LISTEN_URL": dsn})
    assert code == 0
    assert "No lost position is known." in printed


@pytest.mark.parametrize("command", ["lost", "migrate", "events tail"])
async def test_an_error_names_the_url_that_leads_nowhere(dsn: str, command: str) -> None:
    environ = {"DATABASE_URL": dsn, "HEADWATER_LISTEN_URL": NOWHERE}
    code, _, error = await run_command(*command.split(), environ=environ)
    assert code != 0
    assert "HEADWATER_LISTEN_URL: the database cannot be reached" in error
