"""The conditions under which the saga tests run: see `tests.support.works`."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.works import Work, weather

from headwater import Refusal
from headwater.commands.dispatcher import Accepted, Dispatcher
from headwater.domain.messages import Command
from headwater.errors import Unavailable


@pytest.fixture(autouse=True)
def unforgiving_weather() -> None:
    """Begins each test with works that behave as their names say."""
    weather.forgiving = False


@pytest.fixture(autouse=True)
def no_answer_to_late_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the log unavailable to commands for works named `late ...`.

    A decider cannot raise `Unavailable` itself: any exception of its own is a bug.
    """
    issue = Dispatcher.issue

    async def issued(self: Dispatcher, command: Command, **options: Any) -> Accepted | Refusal:
        if isinstance(command, Work) and command.name.startswith("late ") and not weather.forgiving:
            raise Unavailable("the log does not answer")
        return await issue(self, command, **options)

    monkeypatch.setattr(Dispatcher, "issue", issued)
