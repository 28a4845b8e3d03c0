"""Commands that a test has to have accepted before it can go on."""

from __future__ import annotations

from typing import Any, Protocol

from headwater import Command, Refusal
from headwater.commands.dispatcher import Accepted, Dispatcher


class HasDispatcher(Protocol):
    """A node, or another part of a test that decides commands."""

    @property
    def dispatcher(self) -> Dispatcher: ...


async def accepted(node: HasDispatcher, command: Command, **options: Any) -> Accepted:
    """Execute a command and return its place in the log. Raises AssertionError if it is refused."""
    return unrefused(await node.dispatcher.execute(command, **options))


def unrefused(answer: Accepted | Refusal) -> Accepted:
    """Return the answer to a command. Raises AssertionError if it is a refusal."""
    assert isinstance(answer, Accepted), f"the command was refused: {answer!r}"
    return answer
