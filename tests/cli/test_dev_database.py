"""`headwater psql` and `headwater reset`: the database of `headwater dev`, seen and removed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.commands import clean_environ, run_command

from headwater.cli.psql import psql, without_password
from headwater.errors import SettingsError
from headwater.postgres import embedded

SELECT = ("psql", "--", "-Atc", "select 'seen'")


async def test_the_database_of_dev_is_opened_and_removed_unless_a_process_uses_it(data: Path) -> None:
    environ = clean_environ() | {"HEADWATER_DATA": str(data)}
    for command in (SELECT, ("reset", "--yes")):
        code, out, err = await run_command(*command, environ=environ)
        assert (code, out) == (1, "")
        assert err.startswith(f"headwater: there is no database in {data}; "), err
    server = embedded.start(data)

    assert await run_command(*SELECT, environ=environ) == (0, "seen\n", "")
    code, _, err = await run_command("reset", "--yes", environ=environ)
    assert (code, "a process uses the database in" in err) == (1, True)
    assert server.running()
    server.stop()

    assert await run_command(*SELECT, environ=environ) == (0, "seen\n", ""), "it starts the server for itself"
    assert embedded.running_dsn(data) is None
    code, _, err = await run_command("reset", environ=environ)
    assert (code, "without a terminal, add --yes" in err, embedded.exists(data)) == (1, True, True)
    cluster = (data / "postgres").resolve()
    code, out, err = await run_command("reset", "--yes", environ=environ)
    assert (code, err) == (0, ""), out
    assert not cluster.exists()
    assert not embedded.exists(data)


async def test_database_url_is_opened_and_never_removed(dsn: str, data: Path) -> None:
    assert await run_command(*SELECT, DATABASE_URL=dsn) == (0, "seen\n", "")
    code, _, err = await run_command("psql", "--", "-Atc", "select 1 / 0", DATABASE_URL=dsn)
    assert (code, "division by zero" in err) == (1, True)
    code, _, err = await run_command("reset", "--yes", DATABASE_URL=dsn, HEADWATER_DATA=str(data))
    assert (code, "DATABASE_URL names another" in err) == (1, True)


def test_a_password_is_no_argument() -> None:
    url, variables = without_password("postgresql://ada:p%40ss@one:5432,two:5433/bank?sslmode=require")
    assert url == "postgresql://ada@one:5432,two:5433/bank?sslmode=require"
    assert variables == {"PGPASSWORD": "p@ss"}
    assert without_password("postgresql://ada@one/bank") == ("postgresql://ada@one/bank", {})


def test_a_machine_without_psql_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="there is no psql here; install"):
        psql(tmp_path)
    theirs = tmp_path / "psql"
    theirs.touch(0o755)
    assert psql(None) == str(theirs)
