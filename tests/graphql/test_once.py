"""What several fields ask for is asked once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from headwater.graphql.once import Once


class Question:
    """Answered when the test says so."""

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
    """Let all tasks come to where they wait."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_question_one_answer() -> None:
    once, question = Once(), Question()
    tasks = asking(once, question, 3)
    await turn()
    question.answer.set_result("yes")
    assert await asyncio.gather(*tasks) == ["yes"] * 3
    assert await once.get("what", question) == "yes"
    assert question.asked == 1
    assert await once.get("else", question) == "yes"
    assert question.asked == 2


async def test_all_who_asked_are_told_of_a_failure() -> None:
    once, question = Once(), Question()
    tasks = asking(once, question, 3)
    question.answer.set_exception(ValueError("no"))
    assert [str(each) for each in await asyncio.gather(*tasks, return_exceptions=True)] == ["no"] * 3
    with pytest.raises(ValueError, match="no"):
        await once.get("what", question)
    assert question.asked == 1


async def test_who_leaves_takes_the_answer_from_nobody() -> None:
    once, question = Once(), Question()
    left, stays = asking(once, question, 2)
    await turn()
    left.cancel()
    await turn()
    assert left.cancelled()
    question.answer.set_result("yes")
    assert await stays == "yes"
    assert (question.asked, question.cancelled) == (1, 0)


async def test_a_question_ends_with_the_last_who_waits_for_it() -> None:
    once, question = Once(), Question()
    tasks = asking(once, question, 2)
    await turn()
    for task in tasks:
        task.cancel()
    await turn()
    assert (question.asked, question.cancelled) == (1, 1)
    question.answer.set_result("yes")
    assert await once.get("what", question) == "yes", "it can be asked again"
