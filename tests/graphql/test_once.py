"""Several fields that need the same value share one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from headwater.graphql.once import Once


class Question:
    """A call that ends when the test sets its answer."""

    def __init__(self) -> None:
        self.asked = 0
        self.cancelled = 0
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def __call__(self) -> Coroutine[Any, Any, str]:
        self.asked += 1
        return self._ask()

    async def _ask(self) -> str:
        try:
            return await asyncio.shield(self.answer)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def asking(once: Once, ask: Callable[[], Coroutine[Any, Any, str]], times: int) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(once.get("what", ask)) for _ in range(times)]


async def turn() -> None:
    """Run all tasks until they wait."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_concurrent_and_later_callers_share_one_call_per_key() -> None:
    once, question = Once(), Question()
    tasks = asking(once, question, 3)
    await turn()
    question.answer.set_result("yes")
    assert await asyncio.gather(*tasks) == ["yes"] * 3
    assert await once.get("what", question) == "yes"
    assert question.asked == 1
    assert await once.get("else", question) == "yes"
    assert question.asked == 2


async def test_every_caller_of_a_failed_call_gets_its_error() -> None:
    once, question = Once(), Question()
    tasks = asking(once, question, 3)
    question.answer.set_exception(ValueError("no"))
    assert [str(each) for each in await asyncio.gather(*tasks, return_exceptions=True)] == ["no"] * 3
    with pytest.raises(ValueError, match="no"):
        await once.get("what", question)
    assert question.asked == 1


async def test_a_cancelled_caller_does_not_cancel_the_call_for_the_others() -> None:
    once, question = Once(), Question()
    left, stays = asking(once, question, 2)
    await turn()
    left.cancel()
    await turn()
    assert left.cancelled()
    question.answer.set_result("yes")
    assert await stays == "yes"
    assert (question.asked, question.cancelled) == (1, 0)


async def test_the_call_is_cancelled_with_its_last_caller_and_can_be_made_again() -> None:
    once, question = Once(), Question()
    tasks = asking(once, question, 2)
    await turn()
    for task in tasks:
        task.cancel()
    await turn()
    assert (question.asked, question.cancelled) == (1, 1)
    question.answer.set_result("yes")
    assert await once.get("what", question) == "yes", "it can be called again"
