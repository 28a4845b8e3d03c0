"""Invariants: what a declaration must fulfil, and how events are checked."""
# No `from __future__ import annotations`: annotations are evaluated at once, so that they can name classes of a test.

from typing import Any
from uuid import UUID

import pytest

from headwater import Command, Decider, Event, Feature, Invariant, ReadModel, Recorded, View, Violation
from headwater.domain.feature import Domain
from headwater.errors import DefinitionError
from headwater.testing import recorded, violations

A, B = UUID(int=1), UUID(int=2)


class Count(Command):
    counter_id: UUID


class Counted(Event):
    counter_id: UUID
    by: int
    total: int
    owner_id: UUID = B


class Started(Event):
    counter_id: UUID


class Stranger(Event):
    counter_id: UUID


def decide(command: Count, state: int) -> list[Counted]:
    return []


def evolve(state: int, event: Counted | Started) -> int:
    return state


def adds_up(before: int | None, event: Recorded[Counted]) -> int:
    total = (before or 0) + event.data.by
    if event.data.total != total:
        raise Violation(f"{event.data.total} is not {total}")
    return total


def counts_or_starts(before: int | None, event: Recorded[Counted | Started]) -> int | None:
    if isinstance(event.data, Started):
        if before is None:
            raise Violation("started twice")
        return None
    return 1


counters = Decider(category="counter", key="counter_id", initial=0, decide=decide, evolve=evolve)


def counted(by: int, total: int, *, stream: UUID = A, owner: UUID = B) -> Recorded[Counted]:
    return recorded(Counted(counter_id=stream, by=by, total=total, owner_id=owner), stream_id=stream)


def started(stream: UUID = A) -> Recorded[Started]:
    return recorded(Started(counter_id=stream), stream_id=stream)


# Checking ------------------------------------------------------------------------------------------------------------


def test_events_that_fulfil_the_invariant_have_no_violation() -> None:
    total = Invariant("total", over=Counted, holds=adds_up)
    assert violations(total, [counted(1, 1), counted(2, 3), started(), counted(0, 3)]) == []
    assert violations(total, []) == []


def test_each_stream_is_checked_by_itself() -> None:
    total = Invariant("total", over=Counted, holds=adds_up)
    assert violations(total, [counted(1, 1), counted(5, 5, stream=B), counted(1, 2), counted(1, 1, stream=B)]) == [
        "1 is not 6"
    ]


def test_a_key_gathers_events_of_several_streams() -> None:
    total = Invariant("total", over=[Counted], holds=adds_up, key=lambda event: event.owner_id)
    assert violations(total, [counted(1, 1), counted(1, 2, stream=B), counted(1, 1, owner=A)]) == []


def test_a_key_is_not_checked_after_its_first_violation() -> None:
    total = Invariant("total", over=Counted, holds=adds_up)
    assert violations(total, [counted(1, 7), counted(1, 7), counted(1, 1, stream=B)]) == ["7 is not 1"]


def test_none_is_passed_for_the_first_event_and_after_none() -> None:
    once = Invariant("once", over=Counted | Started, holds=counts_or_starts)
    assert violations(once, [counted(1, 1), started()]) == []
    assert violations(once, [started()]) == ["started twice"]
    assert violations(once, [counted(1, 1), started(), started()]) == ["started twice"]


def test_an_error_of_the_function_is_no_violation_in_a_test() -> None:
    def fails(before: None, event: Recorded[Counted]) -> None:
        raise KeyError(event.data.by)

    with pytest.raises(KeyError):
        violations(Invariant("fails", over=Counted, holds=fails), [counted(1, 1)])


def test_a_key_that_is_no_uuid_is_an_error() -> None:
    astray = Invariant("astray", over=Counted, holds=adds_up, key=lambda event: event.by)  # type: ignore[arg-type, return-value]  # a mistake
    with pytest.raises(TypeError, match=r"returned 1, not a UUID$"):
        violations(astray, [counted(1, 1)])


# Declaring -----------------------------------------------------------------------------------------------------------


def test_over_is_a_class_a_union_or_a_list() -> None:
    both = counts_or_starts
    assert Invariant("one", over=Counted, holds=both).events == (Counted,)
    assert Invariant("union", over=Counted | Started, holds=both).events == (Counted, Started)
    assert Invariant("list", over=[Started, Counted, Started], holds=both).events == (Started, Counted)


def bare(before: int | None, event: Counted) -> int:
    return 1


def untyped(before, event):  # type: ignore[no-untyped-def]  # a mistake
    return None


async def later(before: int | None, event: Recorded[Counted]) -> int:
    return 1


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"name": "the total"}, "An invariant's name is letters, digits and underscores, not 'the total'"),
        ({"name": 7}, "An invariant's name is letters, digits and underscores, not 7"),
        ({"over": []}, "The invariant total: `over` is empty; list the events that it looks at"),
        ({"over": None}, "The invariant total: over=None is no Event"),
        ({"over": [Counted, Count]}, "The invariant total: over=<class '.*Count'> is no Event"),
        (
            {"over": Started},
            r"adds_up: its second parameter must be annotated Recorded\[...\] with the events of the invariant total;"
            " Started is missing",
        ),
        ({"holds": bare}, r"bare: its second parameter must be annotated Recorded\[...\] .* Counted is missing"),
        ({"holds": untyped}, r"untyped: its second parameter must be annotated Recorded\[...\]"),
        ({"holds": later}, r"later must be a plain function, not an async one"),
    ],
    ids=["words", "number", "nothing", "none", "command", "another", "bare", "untyped", "async"],
)
def test_a_mistake_is_named(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DefinitionError, match=sentence):
        Invariant(**{"name": "total", "over": Counted, "holds": adds_up, **wrong})


def test_names_of_invariants_are_unique_among_themselves_and_read_models() -> None:
    class Total(ReadModel, key="counter_id"):
        counter_id: UUID

    def fold(row: Total | None, event: Recorded[Counted]) -> Total | None:
        return row

    total = Invariant("total", over=Counted, holds=adds_up)
    other = Invariant("other", over=Counted, holds=adds_up)
    assert Domain([Feature([counters], invariants=[other]), Feature(invariants=[total])]).invariants == (other, total)
    with pytest.raises(DefinitionError, match="two declarations of an invariant named 'total'"):
        Domain([Feature([counters], invariants=[total, other]), Feature(invariants=[total])])
    with pytest.raises(DefinitionError, match="The invariant total has the name of the read model Total"):
        Domain([Feature([counters], [View(Total, fold)], invariants=[total])])


def test_an_invariant_looks_at_events_of_deciders_only() -> None:
    def holds(before: None, event: Recorded[Stranger]) -> None:
        return None

    strange = Invariant("strange", over=Stranger, holds=holds)
    with pytest.raises(
        DefinitionError, match="The invariant strange looks at Stranger, which no decider's evolve takes"
    ):
        Domain([Feature([counters], invariants=[strange])])
