"""Fills a database with the commands of a seed, through the same door as those of a program."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from headwater.clock import VirtualClock
from headwater.commands.dispatcher import Accepted
from headwater.config import Settings
from headwater.domain.messages import Command, InvalidInput
from headwater.domain.seed import Item, Seed, SeedFunction
from headwater.errors import HeadwaterError
from headwater.ids import derived_id
from headwater.server.running import RunningApp, node_with_database

if TYPE_CHECKING:
    from headwater.app import App

_COMMANDS = UUID("b9a0c6d4-52f7-5e0c-8f0b-1d6a3c7e4f28")

_canonical = msgspec.json.Encoder(decimal_format="string", order="deterministic").encode


class SeedFailed(HeadwaterError):
    """A seed yields something that cannot be executed, or a command of it is refused. Earlier commands stand."""


async def run_seed(app: App, settings: Settings, name: str, function: SeedFunction) -> int:
    """Execute the commands of a seed in their order, each after the answer to the one before. Return their number.

    The id of a command is derived from `name`, its actor, its content, and how often the seed has yielded the same
    before. Therefore a second run appends nothing, and a run of a longer seed appends what is new. No projection, saga
    or reactor runs here; the workers of the database do their part.

    Raises:
        SeedFailed: the message names the number of the item, from 1, and the refusal.
        Every error of `App.run`.
    """
    seed = Seed()
    clock = VirtualClock(seed.now)
    times: Counter[bytes] = Counter()
    async with node_with_database(app, settings, work=False, clock=clock) as node:
        bank = RunningApp(node)
        number = 0
        async for item in _items(function, seed):
            number += 1
            command, actor = _checked(item, number, name)
            content = _canonical((name, command.__declared__.name, actor, command))
            times[content] += 1
            command_id = derived_id(_COMMANDS, f"{content.decode()}:{times[content]}")
            await clock.advance(seed.now - clock.now())
            answer = await bank.execute(command, actor=actor, command_id=command_id)
            if not isinstance(answer, Accepted):
                facts = (
                    f" ({'.'.join(map(str, answer.path))}: {answer.complaint})"
                    if isinstance(answer, InvalidInput)
                    else ""
                )
                raise SeedFailed(
                    f"item {number} of {name} was refused: {command!r}: {answer.code}: {answer.message}{facts}"
                )
    return number


async def _items(function: SeedFunction, seed: Seed) -> AsyncIterator[object]:
    items = function(seed)
    if isinstance(items, AsyncIterator):
        async for item in items:
            yield item
    elif isinstance(items, Iterator):
        for item in items:
            yield item
    else:
        raise SeedFailed(f"a seed must be a generator of (command, actor), and not return {type(items).__name__}")


def _checked(item: object, number: int, name: str) -> Item:
    match item:
        case (Command() as command, (str() | None) as actor):
            return command, actor
        case _:
            raise SeedFailed(f"item {number} of {name} is {item!r}; yield a command and its actor, a text or None")
