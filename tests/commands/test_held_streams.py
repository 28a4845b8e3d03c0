"""Decisions that hold other streams: their events are not written once a held stream has changed."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from tests.support.dispatching import Process, Start, stream

from headwater import Command, Consult, Context, Decider, Event, Feature, Refusal
from headwater.commands.dispatcher import Accepted
from headwater.domain.feature import Domain
from headwater.errors import Contended
from headwater.eventstore.log import Verdict
from headwater.ids import new_id

ROUNDS = 40


class NobodyElse(Refusal):
    """The other doctor is off call."""


class GoOffCall(Command):
    doctor_id: UUID
    other_id: UUID
    held: bool = True


class GoOnCall(Command):
    doctor_id: UUID


class WentOffCall(Event):
    pass


class WentOnCall(Event):
    pass


def go_off(command: GoOffCall, on_call: bool, context: Context) -> WentOffCall | NobodyElse:
    return WentOffCall() if context.seen.of(doctors, command.other_id) else NobodyElse()


def go_on(command: GoOnCall, on_call: bool) -> WentOnCall:
    return WentOnCall()


def evolve(on_call: bool, event: WentOffCall | WentOnCall) -> bool:
    return isinstance(event, WentOnCall)


def consults(command: GoOffCall) -> list[Consult]:
    return [Consult(doctors, command.other_id, hold=command.held)]


doctors = Decider("doctor", "doctor_id", initial=True, decide=[go_off, go_on], evolve=evolve, consults=consults)
WARD = Domain([Feature(deciders=[doctors])])
A, B = UUID(int=1), UUID(int=2)


async def off_call(ward: Process, *doctor_ids: UUID) -> list[bool]:
    """Return for each doctor whether the log says that they are off call."""
    return [await stream(ward, each) != [] and (await stream(ward, each))[-1] == WentOffCall() for each in doctor_ids]


@pytest.mark.parametrize("held", [True, False])
async def test_write_skew_is_possible_without_hold_only(process: Start, held: bool) -> None:
    """Both processes have cached that both doctors are on call. Then one of them goes off in each process."""
    north, south = await process(WARD), await process(WARD)
    for each in (north, south):
        await each(GoOnCall(doctor_id=A))
        await each(GoOnCall(doctor_id=B))
    await north(GoOffCall(doctor_id=A, other_id=B, held=held))
    second = await south.ask(GoOffCall(doctor_id=B, other_id=A, held=held))
    assert (second == NobodyElse()) is held
    assert await off_call(north, A, B) == [True, not held]


@pytest.mark.parametrize("processes", [1, 2])
async def test_of_two_doctors_that_go_off_call_at_once_one_stays(process: Start, processes: int) -> None:
    wards = [await process(WARD) for _ in range(processes)]
    pairs = [(new_id(), new_id()) for _ in range(ROUNDS)]
    for turn in range(3):
        answers = await asyncio.gather(
            *(
                wards[(place + turn) % processes].ask(GoOffCall(doctor_id=one, other_id=other))
                for pair in pairs
                for place, (one, other) in enumerate((pair, pair[::-1]))
            )
        )
        assert all(isinstance(answer, Accepted) or answer == NobodyElse() for answer in answers)
        assert [sorted(await off_call(wards[0], *pair)) for pair in pairs] == [[False, True]] * ROUNDS
        await asyncio.gather(*(wards[0](GoOnCall(doctor_id=each)) for pair in pairs for each in pair))


async def test_a_busy_stream_of_the_same_process_can_be_held(process: Start) -> None:
    """It is seen as the commands in flight will leave it, so that few holders have to be decided again."""
    ward = await process(WARD)
    busy = [asyncio.create_task(ward(GoOnCall(doctor_id=A))) for _ in range(200)]
    held = [asyncio.create_task(ward(GoOffCall(doctor_id=new_id(), other_id=A))) for _ in range(20)]
    busy += [asyncio.create_task(ward(GoOnCall(doctor_id=A))) for _ in range(200)]
    await asyncio.gather(*busy, *held)
    assert ward.appender.counts.verdicts[Verdict.MOVED] == 0


async def test_a_command_whose_held_stream_always_moves_on_is_contended(process: Start) -> None:
    ward, beside = await process(WARD, attempts=3), await process(WARD)
    await ward(GoOnCall(doctor_id=A))
    read = ward.dispatcher._streams.read

    async def read_and_lose(*arguments: object) -> object:
        point = await read(*arguments)  # type: ignore[arg-type]  # handed on
        await beside(GoOnCall(doctor_id=A))
        return point

    ward.dispatcher._streams.read = read_and_lose  # type: ignore[method-assign, assignment]
    await beside(GoOnCall(doctor_id=A))
    with pytest.raises(Contended, match="during 3 attempts; nothing was written"):
        await ward(GoOffCall(doctor_id=B, other_id=A))
    assert ward.appender.counts.verdicts[Verdict.MOVED] == 3
    assert await stream(beside, B) == []


async def test_a_command_may_name_its_own_stream(process: Start) -> None:
    ward = await process(WARD)
    assert (await ward(GoOffCall(doctor_id=A, other_id=A))).version == 1
    assert await ward.ask(GoOffCall(doctor_id=A, other_id=A)) == NobodyElse()
