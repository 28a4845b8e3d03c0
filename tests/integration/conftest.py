"""What integration tests have in common: a network that breaks, and, for sagas and schedules, works that are late."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.proxy import Proxy
from tests.integration.works import Work, weather

from headwater.dispatch import Accepted, Dispatcher
from headwater.errors import Unavailable
from headwater.messages import Command


@pytest.fixture(autouse=True)
def nobody_answers_what_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """To works named `late ...` the log is away: no decider can say that, since what it raises is a bug of its own."""
    issue = Dispatcher.issue

    async def issued(self: Dispatcher, command: Command, **options: Any) -> Accepted:
        if isinstance(command, Work) and command.name.startswith("late ") and not weather.forgiving:
            raise Unavailable("nobody answers")
        return await issue(self, command, **options)

    monkeypatch.setattr(Dispatcher, "issue", issued)


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    with tempfile.TemporaryDirectory(prefix="hw-") as folder:  # a socket's path has to be short
        proxy = Proxy(dsn, Path(folder))
        await proxy.listen()
        yield proxy
        await proxy.close()
