"""What a process has done before it serves. `tests/acceptance/test_processes.py` runs processes as a whole."""

from __future__ import annotations

import gc

import pytest

from headwater.cli import main, processes
from headwater.server.http_server import Server


@pytest.mark.parametrize("command", ["serve", "work"])
def test_the_garbage_collector_ignores_what_exists_before_requests_are_served(
    dsn: str, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    async def run(server: Server, *_: object) -> None:
        frozen.append(not any(each is server for each in gc.get_objects()))

    frozen: list[bool] = []
    monkeypatch.setattr(processes, "run", run)
    monkeypatch.setenv("DATABASE_URL", dsn)
    try:
        assert main([command, "--app", "bank.main:app", "--port", "0"]) == 0
    finally:
        gc.unfreeze()
    assert frozen == [True]
