"""The fold of a saga's instance, without a log: the order of its steps, undos and ends, and its phases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import RFC_4122, UUID, uuid4

import pytest

from headwater import After, Cancel, Command, Decider, Do, Done, Event, Feature, Refusal, Refused, Saga, Undo, replace
from headwater.domain.feature import Domain
from headwater.domain.messages import Recorded
from headwater.domain.saga_fold import apply_record, input_of, reaction_to
from headwater.domain.saga_records import (
    CancelTimer,
    Finish,
    GiveUp,
    IssueStep,
    IssueUndo,
    SagaAbandoned,
    SagaHandledEvent,
    SagaRecord,
    SagaRetried,
    SagaStepConfirmed,
    SagaStepRefused,
    SagaStepTimedOut,
    SagaTimerFired,
    SetTimer,
    StoredCommand,
)
from headwater.domain.saga_state import End, ForwardStep, Phase, SagaInstance, StepState
from headwater.domain.serialization import Codec, stored_form
from headwater.ids import derived_id, internal_id, is_internal, new_id

NOW = datetime(2026, 6, 1, tzinfo=UTC)
KEY = uuid4()
HOUR = timedelta(hours=1)


class Step(Command):
    key: UUID
    name: str


class Begun(Event):
    key: UUID


class GivenUp(Event):
    key: UUID


class Later(Event):
    key: UUID


class Ping(Event):
    """A message of the saga's own."""


class No(Refusal):
    """It is refused."""


def decide(command: Step, state: None) -> Begun | No | None:
    return None


def evolve_nothing(state: None, event: Begun | GivenUp | Later) -> None:
    return None


steps = Decider("step", key="key", initial=None, decide=decide, evolve=evolve_nothing)


def step(name: str, **options: Any) -> Do:
    undo = None if options.get("pivot") else Step(key=KEY, name=f"undo {name}")
    return Do(Step(key=KEY, name=name), undo=undo, **options)


def saga_of(*steps: Do) -> Saga[Any]:
    def react(state: None, event: Begun | GivenUp | Later | Refused[Step]) -> list[Do | Undo | Done]:
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
class Instance:
    """An instance in memory. Its methods record what arrives, as a conductor does, and return the instance itself."""

    folded: SagaInstance[Any]
    domain: Domain
    position: int = 0

    def record(self, record: SagaRecord, event: Event | None = None) -> Instance:
        given = input_of(self.folded, record, event, self.domain)
        record = replace(record, then=reaction_to(self.folded, given, f"cause {self.position}", NOW))
        self.position += 1
        version = self.folded.version + 1
        recorded = Recorded(record, self.position, self.folded.stream_id, version, NOW, uuid4(), uuid4(), uuid4())
        apply_record(self.folded, recorded, given)
        return self

    def handle(self, event: Event) -> Instance:
        name, position = event.__declared__.name, self.position + 1
        record = SagaHandledEvent(saga="S", at=NOW, key=KEY, position=position, event_id=uuid4(), type=name)
        return self.record(record, event)

    def accept(self, count: int = 1) -> Instance:
        for _ in range(count):
            self.record(SagaStepConfirmed(saga="S", at=NOW, step=self._number, version=1, position=1))
        return self

    def refuse(self) -> Instance:
        return self.record(SagaStepRefused(saga="S", at=NOW, step=self._number, code="NO", message="", facts={}))

    def time_out(self) -> Instance:
        return self.record(SagaStepTimedOut(saga="S", at=NOW, step=self._number))

    def retry(self) -> Instance:
        return self.record(SagaRetried(saga="S", at=NOW, by="ada"))

    @property
    def phase(self) -> Phase:
        return self.folded.phase

    @property
    def states(self) -> dict[str, StepState]:
        return {str(step.fields["name"]): step.state for step in self.folded.steps}

    @property
    def queue(self) -> list[str]:
        return ["done" if isinstance(entry, End) else entry.fields["name"] for entry in self.folded.queue]

    @property
    def _number(self) -> int:
        first = self.folded.first_step
        assert first is not None
        return first.number


def begin(saga: Saga[Any]) -> Instance:
    instance = SagaInstance(saga, saga.stream_of(KEY), saga.initial)
    return Instance(instance, Domain([Feature(deciders=[steps], sagas=[saga])])).handle(Begun(key=KEY))


def begun(*steps: Do) -> Instance:
    """Return an instance whose first event is followed by these steps and Done()."""
    return begin(saga_of(*steps))


A, B, C = step("a"), step("b"), step("c")
P = step("p", pivot=True)


def test_steps_run_in_order() -> None:
    instance = begun(A, B)
    assert instance.queue == ["a", "b", "done"]
    assert instance.accept(2).phase is Phase.DONE


def test_only_the_first_step_is_issued() -> None:
    instance = begun(A, B)
    assert instance.states == {"a": StepState.ISSUED, "b": StepState.WAITING}
    assert instance.accept().states == {"a": StepState.CONFIRMED, "b": StepState.ISSUED}


def test_a_refusal_is_followed_by_the_undos_and_then_by_the_reaction_to_it() -> None:
    instance = begun(A, B, C).accept(2).refuse()
    assert instance.queue == ["undo b", "undo a", "after NO", "done"]
    assert instance.phase is Phase.UNDOING
    assert instance.accept(2).phase is Phase.RUNNING
    assert instance.accept().phase is Phase.DONE
    assert instance.states == {
        "a": StepState.UNDONE,
        "b": StepState.UNDONE,
        "c": StepState.REFUSED,
        "undo b": StepState.CONFIRMED,
        "undo a": StepState.CONFIRMED,
        "after NO": StepState.CONFIRMED,
    }


def test_a_failure_that_react_does_not_take_ends_the_instance_after_the_undos() -> None:
    instance = begun(A, B).accept().time_out()
    assert instance.queue == ["undo a", "done"]
    assert instance.accept().phase is Phase.DONE
    assert instance.folded.reason == "Step: TIMED_OUT"


@pytest.mark.parametrize("fail", [Instance.refuse, Instance.time_out])
def test_the_failure_of_an_optional_step_undoes_nothing(fail: Callable[[Instance], Instance]) -> None:
    instance = fail(begun(A, step("o", optional=True), B).accept())
    assert instance.queue[:2] == ["b", "done"]
    assert instance.phase is Phase.RUNNING
    assert instance.states["a"] is StepState.CONFIRMED


def test_giving_up_waits_for_the_outcome_of_the_issued_step() -> None:
    instance = begun(A, B, C).accept().handle(GivenUp(key=KEY))
    assert instance.queue == ["b", "undo a", "after giving up", "done"]
    issued = instance.folded.current
    assert isinstance(issued, ForwardStep)
    assert issued.withdrawn
    assert instance.time_out().queue == ["undo a", "after giving up", "done"]


def test_a_withdrawn_step_that_was_accepted_after_all_is_undone_first() -> None:
    instance = begun(A, B, C).accept().handle(GivenUp(key=KEY)).accept()
    assert instance.queue == ["undo b", "undo a", "after giving up", "done"]


def test_no_step_is_undone_after_a_pivot() -> None:
    given_up = begun(A, P, B).accept(2).handle(GivenUp(key=KEY))
    assert given_up.queue == ["b", "done", "after giving up", "done"]
    assert begun(A, P, B).accept(2).refuse().queue == ["after NO", "done"]


def test_a_withdrawn_pivot_that_was_accepted_after_all_stands() -> None:
    instance = begun(A, P, B).accept().handle(GivenUp(key=KEY))
    assert instance.queue == ["p", "undo a", "after giving up", "done"]
    assert instance.accept().queue == ["b", "done"]
    assert instance.accept().phase is Phase.DONE


def test_a_withdrawn_pivot_that_stands_drops_only_what_followed_from_giving_up() -> None:
    instance = begun(A, P, B).accept().handle(GivenUp(key=KEY)).handle(Later(key=KEY))
    assert instance.queue == ["p", "undo a", "after giving up", "done", "later"]
    assert instance.accept().queue == ["b", "done", "later"]
    assert instance.states["undo a"] is instance.states["after giving up"] is StepState.DROPPED
    assert instance.states["later"] is StepState.WAITING


def test_a_withdrawn_pivot_that_stands_restores_what_a_second_giving_up_dropped() -> None:
    instance = begun(A, P, B).accept().handle(GivenUp(key=KEY)).handle(Later(key=KEY)).handle(GivenUp(key=KEY))
    assert instance.queue == ["p", "undo a", "after giving up", "done"]
    assert instance.accept().queue == ["b", "done", "later"]


def test_a_withdrawn_pivot_that_was_not_accepted_changes_nothing() -> None:
    instance = begun(A, P, B).accept().handle(GivenUp(key=KEY)).handle(Later(key=KEY)).time_out()
    assert instance.queue == ["undo a", "after giving up", "done", "later"]


def test_giving_up_twice_undoes_once() -> None:
    instance = begun(A, B).accept().handle(GivenUp(key=KEY)).time_out().handle(GivenUp(key=KEY))
    assert instance.queue.count("undo a") == 1


def test_undos_are_not_interrupted_by_a_later_event() -> None:
    instance = begun(A, B, C).accept(2).refuse().accept().handle(GivenUp(key=KEY))
    assert instance.queue == ["undo a", "after giving up", "done"]
    assert instance.states["undo a"] is StepState.ISSUED


def test_a_refused_undo_parks_the_instance_until_an_operator_retries_it() -> None:
    instance = begun(A, B).accept().refuse().refuse()
    assert instance.phase is Phase.PARKED
    assert instance.folded.current is None
    assert instance.retry().phase is Phase.UNDOING
    assert instance.accept().queue == ["after NO", "done"]


def test_an_undo_without_a_step_compensates_and_parks_when_it_is_refused() -> None:
    def react(state: None, event: Begun) -> list[Undo | Done]:
        return [Undo(Step(key=KEY, name="repair")), Done()]

    def evolve(state: None, event: Begun) -> None:
        return None

    instance = begin(Saga("S", "key", None, react, evolve))
    assert instance.phase is Phase.UNDOING
    assert instance.folded.compensates
    assert instance.refuse().phase is Phase.PARKED
    assert instance.retry().accept().phase is Phase.DONE


def test_an_abandoned_instance_has_ended() -> None:
    abandoned = SagaAbandoned(saga="S", at=NOW, by="ada", reason="lost", key=KEY)
    instance = begun(A, B).accept().record(abandoned)
    assert instance.folded.ended
    assert instance.queue == []
    assert instance.states == {"a": StepState.CONFIRMED, "b": StepState.DROPPED}


def with_timers() -> Instance:
    """Return an instance that sets a timer for Later, a timer for Ping and again a timer for Later."""

    def react(state: None, event: Begun | GivenUp | Later | Ping) -> list[Do | After | Cancel | Done]:
        match event:
            case Begun():
                return [After(HOUR, Later(key=KEY)), After(HOUR, Ping()), After(2 * HOUR, Later(key=KEY))]
            case GivenUp():
                return [Cancel(Ping)]
            case Later():
                return [step("later")]
            case Ping():
                return [Done()]

    def evolve(state: None, event: Begun) -> None:
        return None

    return begin(Saga("S", "key", None, react, evolve))


def test_a_second_timer_of_a_message_type_replaces_the_first() -> None:
    due = {name: timer.due_at for name, timer in with_timers().folded.timers.items()}
    assert due == {"Later": NOW + 2 * HOUR, "Ping": NOW + HOUR}


def test_a_message_is_removed_from_the_timers_and_given_to_react() -> None:
    instance = with_timers().record(SagaTimerFired(saga="S", at=NOW, type="Later", due_at=NOW))
    assert instance.queue == ["later"]
    assert instance.folded.timers.keys() == {"Ping"}


def test_a_cancelled_timer_is_removed() -> None:
    assert with_timers().handle(GivenUp(key=KEY)).folded.timers.keys() == {"Later"}


def test_the_end_of_an_instance_removes_its_timers() -> None:
    instance = with_timers().record(SagaTimerFired(saga="S", at=NOW, type="Ping", due_at=NOW))
    assert instance.phase is Phase.DONE
    assert instance.folded.timers == {}
    assert instance.folded.had_timers


def test_everything_that_follows_from_an_event_survives_storage() -> None:
    undo = StoredCommand("Step", {"key": str(KEY), "name": "undo"})
    fields = {"key": str(KEY), "name": "a"}
    record = SagaHandledEvent(
        saga="S",
        at=NOW,
        then=[
            IssueStep(command="Step", fields=fields, command_id=KEY),
            IssueStep(command="Step", fields=fields, command_id=KEY, undo=undo, within=1.5, optional=True, pivot=True),
            IssueUndo(command="Step", fields=fields, command_id=KEY),
            GiveUp(),
            SetTimer(type="Later", version=1, data="{}", due_at=NOW),
            CancelTimer("Later"),
            CancelTimer(None),
            Finish(),
        ],
        key=KEY,
        position=1,
        event_id=KEY,
        type="Begun",
    )
    name, version, data = stored_form(record)
    assert Codec([SagaHandledEvent]).decode(name, version, data) == record


def test_the_ids_of_an_undo_and_of_its_retry_are_derived_from_the_id_of_the_step() -> None:
    instance = begun(A, B).accept()
    first = instance.folded.steps[0]
    undo = instance.refuse().folded.current
    assert undo is not None
    assert undo.command_id == internal_id(first.command_id, "undo")
    instance.refuse().retry()
    assert undo.command_id == internal_id(internal_id(first.command_id, "undo"), f"again {instance.folded.version}")


def test_internal_ids_have_a_uuid_version_of_their_own() -> None:
    one = internal_id(KEY, "x")
    assert (one.version, one.variant, str(UUID(str(one)))) == (8, RFC_4122, str(one))
    assert one == internal_id(KEY, "x") != internal_id(KEY, "y")
    assert is_internal(one)
    assert not any(map(is_internal, (derived_id(KEY, "x"), new_id(), uuid4(), UUID(int=0))))
