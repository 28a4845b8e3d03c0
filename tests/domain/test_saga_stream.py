"""The course of a saga's instance, without a log: what follows what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import RFC_4122, UUID, uuid4

import pytest

from headwater import Command, Do, Done, Event, Refused, Saga, Undo
from headwater.domain.messages import Recorded
from headwater.domain.saga import LONGEST
from headwater.domain.saga_stream import (
    Course,
    Phase,
    Record,
    SagaAbandoned,
    SagaConfirmed,
    SagaRefused,
    SagaRetried,
    SagaTimedOut,
    SagaTook,
    StepState,
)
from headwater.domain.serialization import Codec
from headwater.ids import derived_id, internal_id, is_internal, new_id

NOW = datetime(2026, 6, 1, tzinfo=UTC)
KEY = uuid4()


class Step(Command):
    key: UUID
    name: str


class Begun(Event):
    key: UUID


class GivenUp(Event):
    key: UUID


class Later(Event):
    key: UUID


def step(name: str, **options: Any) -> Do:
    undo = None if options.get("pivot") else Step(key=KEY, name=f"undo {name}")
    return Do(Step(key=KEY, name=name), undo=undo, **options)


def saga_of(*steps: Do) -> Saga[Any, Any]:
    def react(state: None, event: Begun | GivenUp | Later | Refused) -> list[Do | Undo | Done]:
        match event:
            case Begun():
                return [*steps, Done()]
            case GivenUp():
                return [Undo(), step("after giving up"), Done()]
            case Later():
                return [step("later")]
            case Refused():
                return [step(f"after {event.code}"), Done()]

    def evolve(state: None, event: Begun) -> None:
        return None

    return Saga("S", "key", None, react, evolve)


@dataclass
class Told:
    """A course that is told what comes."""

    course: Course[Any]
    codec: Codec
    position: int = 0

    def tell(self, record: Record, event: Event | None = None) -> Told:
        given = self.course.given(record, event, self.codec)
        record = type(record)(
            **{name: getattr(record, name) for name in record.__struct_fields__ if name != "then"},
            then=self.course.follows(given, f"cause {self.position}", NOW),
        )
        self.position += 1
        version = self.course.version + 1
        recorded = Recorded(record, self.position, self.course.stream_id, version, NOW, uuid4(), uuid4(), uuid4())
        self.course.apply(recorded, given)
        return self

    def take(self, event: Event) -> Told:
        record = SagaTook(
            saga="S", at=NOW, key=KEY, position=self.position + 1, event_id=uuid4(), type=event.__declared__.name
        )
        return self.tell(record, event)

    def accept(self, count: int = 1) -> Told:
        for _ in range(count):
            self.tell(SagaConfirmed(saga="S", at=NOW, step=self._number, version=1, position=1))
        return self

    def refuse(self) -> Told:
        return self.tell(SagaRefused(saga="S", at=NOW, step=self._number, code="NO", message="", facts={}))

    def time_out(self) -> Told:
        return self.tell(SagaTimedOut(saga="S", at=NOW, step=self._number))

    @property
    def phase(self) -> str:
        return self.course.phase.value

    @property
    def _number(self) -> int:
        current = self.course.queue[0]
        assert current is not None
        return current.number

    @property
    def to_come(self) -> list[str]:
        return [f"{each.fields['name']}" if each else "done" for each in self.course.queue]


def told(steps: Sequence[Do]) -> Told:
    saga = saga_of(*steps)
    return Told(Course(saga, saga.stream_of(KEY), saga.initial), Codec([Begun, GivenUp, Later])).take(Begun(key=KEY))


A, B, C = step("a"), step("b"), step("c")
P = step("p", pivot=True)


def test_steps_come_in_order() -> None:
    course = told([A, B])
    assert course.to_come == ["a", "b", "done"]
    assert course.accept(2).course.phase is Phase.DONE


def test_a_refusal_is_followed_by_the_undos_then_by_the_reaction() -> None:
    course = told([A, B, C]).accept(2).refuse()
    assert course.to_come == ["undo b", "undo a", "after NO", "done"]
    assert course.course.phase is Phase.UNDOING
    assert course.accept(3).course.phase is Phase.DONE


def test_giving_up_waits_for_the_step_that_is_on_its_way() -> None:
    course = told([A, B, C]).accept().take(GivenUp(key=KEY))
    assert course.to_come == ["b", "undo a", "after giving up", "done"]
    assert course.course.current is not None
    assert course.course.current.withdrawn
    assert course.time_out().to_come == ["undo a", "after giving up", "done"]


def test_a_step_that_was_given_up_and_accepted_all_the_same_is_undone_first() -> None:
    course = told([A, B, C]).accept().take(GivenUp(key=KEY)).accept()
    assert course.to_come == ["undo b", "undo a", "after giving up", "done"]


def test_nothing_is_undone_after_a_pivot() -> None:
    course = told([A, P, B]).accept(2)
    assert course.take(GivenUp(key=KEY)).to_come == ["b", "done", "after giving up", "done"]
    assert told([A, P, B]).accept(2).refuse().to_come == ["after NO", "done"]


def test_a_pivot_that_was_given_up_and_accepted_all_the_same_stands() -> None:
    course = told([A, P, B]).accept().take(GivenUp(key=KEY))
    assert course.to_come == ["p", "undo a", "after giving up", "done"]
    assert course.accept().to_come == ["b", "done"]
    assert course.accept().course.phase is Phase.DONE


def test_a_pivot_that_stands_drops_only_what_came_of_giving_up() -> None:
    """What later events led to comes behind what was to come anyway."""
    given_up = told([A, P, B]).accept().take(GivenUp(key=KEY)).take(Later(key=KEY))
    assert given_up.to_come == ["p", "undo a", "after giving up", "done", "later"]
    assert given_up.accept().to_come == ["b", "done", "later"]
    states = {each.fields["name"]: each.state for each in given_up.course.steps}
    assert states["undo a"] is states["after giving up"] is StepState.DROPPED
    assert states["later"] is StepState.WAITING


def test_a_pivot_that_stands_brings_back_what_giving_up_again_had_dropped() -> None:
    given_up = told([A, P, B]).accept().take(GivenUp(key=KEY)).take(Later(key=KEY)).take(GivenUp(key=KEY))
    assert given_up.to_come == ["p", "undo a", "after giving up", "done"]
    assert given_up.accept().to_come == ["b", "done", "later"]


def test_what_comes_later_is_behind_the_undos_of_a_pivot_that_was_given_up_in_time() -> None:
    given_up = told([A, P, B]).accept().take(GivenUp(key=KEY)).take(Later(key=KEY)).time_out()
    assert given_up.to_come == ["undo a", "after giving up", "done", "later"]


def test_a_pivot_that_was_given_up_in_time_never_was() -> None:
    course = told([A, P, B]).accept().take(GivenUp(key=KEY)).time_out()
    assert course.to_come == ["undo a", "after giving up", "done"]


def test_giving_up_twice_undoes_once() -> None:
    course = told([A, B]).accept().take(GivenUp(key=KEY)).time_out().take(GivenUp(key=KEY))
    assert course.to_come.count("undo a") == 1


def test_a_refused_undo_waits_for_a_person() -> None:
    course = told([A, B]).accept().refuse().refuse()
    assert course.phase == "parked"
    assert course.course.current is None
    before = course.course.steps[2].command_id
    course.tell(SagaRetried(saga="S", at=NOW, by="me"))
    assert course.phase == "undoing"
    assert course.course.steps[2].command_id != before  # the refusal has taken the first id
    assert course.accept().to_come == ["after NO", "done"]


def test_what_was_given_up_by_a_person_is_over() -> None:
    course = told([A, B]).accept().tell(SagaAbandoned(saga="S", at=NOW, by="me", reason="lost"))
    assert course.course.over
    assert course.to_come == []


def test_undos_go_on_though_more_comes_meanwhile() -> None:
    course = told([A, B, C]).accept(2).refuse().accept().take(GivenUp(key=KEY))
    assert course.to_come[:1] == ["undo a"]
    assert timedelta(0) == course.course.steps[0].since - NOW  # type: ignore[operator]  # issued


@pytest.mark.parametrize("within", [timedelta.max.total_seconds(), 1e300])
def test_a_log_of_before_may_hold_more_time_than_there_is(within: float) -> None:
    [first, *_] = told([A]).course.steps
    first.within = within
    assert first.due_at == NOW + LONGEST


def test_the_ids_of_an_undo_and_of_its_retry_are_derived_from_the_id_of_the_step() -> None:
    course = told([A, B]).accept()
    first = course.course.steps[0]
    first.command_id = internal_id(KEY, "the first step")
    undo = course.refuse().course.current
    assert undo is not None
    assert undo.command_id == internal_id(first.command_id, "undo")
    course.refuse().tell(SagaRetried(saga="S", at=NOW, by="ada"))
    assert undo.command_id == internal_id(internal_id(first.command_id, "undo"), f"again {course.course.version}")


def test_internal_ids_are_told_from_all_others() -> None:
    one = internal_id(KEY, "x")
    assert (one.version, one.variant, str(UUID(str(one)))) == (8, RFC_4122, str(one))
    assert one == internal_id(KEY, "x") != internal_id(KEY, "y")
    assert is_internal(one)
    assert not any(map(is_internal, (derived_id(KEY, "x"), new_id(), uuid4(), UUID(int=0))))
