"""A decider is what the annotations of its functions say, and a mistake in one stops the start."""
# No `from __future__ import annotations`: annotations are evaluated at once, so that they can name classes of a test.

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias
from uuid import UUID

import pytest

from headwater import Command, Consult, Context, Decider, Event, InvalidInput, Refusal, Release, Seen, Take
from headwater.domain.decider import AnyDecider
from headwater.errors import DefinitionError, LogError, UndeclaredAnswer

A = UUID(int=1)
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
CONTEXT = Context(now=NOW, actor="ada", command_id=A, correlation_id=A)


class Open(Command):
    thing_id: UUID


class Close(Command):
    thing_id: UUID


class Opened(Event):
    at: datetime | None = None


class Closed(Event):
    thing_id: UUID


class Full(Refusal):
    """There is no room."""


class Gone(Refusal):
    """It is not there."""


class State:
    pass


Both: TypeAlias = Opened | Closed


def decide(command: Open, state: State) -> Opened:
    return Opened()


def close(command: Close, state: State, context: Context) -> list[Closed] | tuple[Opened, Closed] | Gone | Full | None:
    return [Closed(thing_id=context.command_id)]


def evolve(state: State, event: Both) -> State:
    return state


def evolve_opened(state: State, event: Opened) -> State:
    return state


def evolve_closed(state: State, event: Closed) -> State:
    return state


def decider(decide: Any = decide, evolve: Any = evolve, **options: Any) -> AnyDecider:
    return Decider("thing", key="thing_id", initial=State(), decide=decide, evolve=evolve, **options)


def says(sentence: str) -> Any:
    """Expect a DefinitionError with exactly this message; `...` stands for a module's name."""
    return pytest.raises(DefinitionError, match="^" + re.escape(sentence).replace(r"\.\.\.", r"[\w.<>]*") + "$")


# ------------------------------------------------------------------------------------------------ what annotations say


def test_functions_are_found_by_the_commands_and_events_of_their_annotations() -> None:
    one = decider([decide, close], [evolve_closed, evolve_opened])
    assert one.commands == (Open, Close)
    assert one.events == (Closed, Opened)
    assert one.decided(Open(thing_id=A), State(), CONTEXT) == (Opened(),)
    assert one.decided(Close(thing_id=A), State(), CONTEXT) == [Closed(thing_id=A)]
    state = State()
    assert one.evolved(state, Opened()) is state


def test_the_refusals_of_a_command_are_those_of_its_functions_result_in_their_order() -> None:
    def decide(command: Open, state: State) -> Opened | Full | InvalidInput:
        return Full()

    one = decider([decide, close])
    assert one.decide_of[Open].own_refusals == (Full,)
    assert one.decide_of[Close].own_refusals == (Gone, Full)
    assert one.decided(Open(thing_id=A), State(), CONTEXT) == Full()


Decide: TypeAlias = Callable[[Open, State], Any]


def returning(answer: object, annotation: Any) -> Decide:
    def decide(command: Open, state: State) -> annotation:
        return answer

    return decide


OPENED, CLOSED = Opened(), Closed(thing_id=A)


@pytest.mark.parametrize(
    "answer, annotation, events",
    [
        (OPENED, Opened | Full, [OPENED]),
        (None, Opened | None, []),
        ([], list[Opened], []),
        ([OPENED, CLOSED], list[Both] | None, [OPENED, CLOSED]),
        ([OPENED], Sequence[Opened | Closed], [OPENED]),
        ((OPENED, CLOSED), tuple[Opened, Closed], [OPENED, CLOSED]),
        (OPENED, Opened | list[Closed], [OPENED]),
    ],
)
def test_what_the_annotation_names_is_returned_as_events(answer: object, annotation: Any, events: list[Event]) -> None:
    decided = decider(returning(answer, annotation)).decided(Open(thing_id=A), State(), CONTEXT)
    assert not isinstance(decided, Refusal)
    assert list(decided) == events


@pytest.mark.parametrize(
    "answer, annotation, shown",
    [
        (CLOSED, Opened | list[Closed], "Closed(thing_id=UUID('00000000-0000-0000-0000-000000000001'))"),
        ([OPENED], Opened | list[Closed], "[Opened(at=None)]"),
        (None, Opened, "None"),
        ([], Opened | Full, "[]"),
        ("opened", list[Opened], "'opened'"),
        (Opened, Opened, "<class 'tests.domain.test_decider.Opened'>"),
    ],
)
def test_what_the_annotation_does_not_name_is_an_error_with_the_functions_name(
    answer: object, annotation: Any, shown: str
) -> None:
    with pytest.raises(UndeclaredAnswer) as caught:
        decider(returning(answer, annotation)).decided(Open(thing_id=A), State(), CONTEXT)
    where = "tests.domain.test_decider.returning.<locals>.decide"
    assert str(caught.value) == f"{where} returned {shown}, which the annotation of its result does not name"


def test_a_refusal_that_the_annotation_does_not_name_is_an_error() -> None:
    with pytest.raises(
        UndeclaredAnswer, match=r"decide refuses with Gone, which .* does not name; add `\| Gone` to it"
    ):
        decider(returning(Gone(), Opened | Full)).decided(Open(thing_id=A), State(), CONTEXT)


def test_an_event_of_another_category_cannot_be_evolved() -> None:
    with pytest.raises(LogError, match=r"^Closed is no event of thing: no `evolve` of its decider takes it$"):
        decider(evolve=evolve_opened).evolved(State(), CLOSED)


def test_claims_and_consults_are_asked_only_for_what_their_annotations_name() -> None:
    def claims(state: State, event: Closed) -> list[Take | Release]:
        return [Release("name", "a")]

    def consults(command: Close) -> list[Consult]:
        return [Consult(one, command.thing_id)]

    one = decider([decide, close], claims=claims, consults=consults)
    assert one.claimed(Close(thing_id=A), State(), CLOSED) == [Release("name", "a")]
    assert one.claimed(Open(thing_id=A), State(), OPENED) == ()
    assert one.consulted(Close(thing_id=A)) == [Consult(one, A)]
    assert one.consulted(Open(thing_id=A)) == ()


def test_a_context_without_consulted_streams_has_seen_nothing() -> None:
    with pytest.raises(DefinitionError, match=f"^A decision reads thing {A}, which `consults` does not name"):
        CONTEXT.seen.of(decider(), A)


# ------------------------------------------------------------------------------------------------------------ mistakes


def test_a_decided_event_must_be_taken_by_evolve() -> None:
    with says(
        "thing: no `evolve` takes Closed, which ...close returns; add it to the annotation of an evolve function's"
        " event"
    ):
        decider([decide, close], evolve_opened)


def test_a_message_is_taken_by_one_function() -> None:
    def again(command: Close | Open, state: State) -> None:
        return None

    with says("Open is taken by both ...decide and ...again; remove it from one of them"):
        decider([decide, again])
    with says("Closed is taken by both ...evolve_closed and ...evolve; remove it from one of them"):
        decider(evolve=[evolve_closed, evolve])


@pytest.mark.parametrize(
    "given, shown", [([], "[]"), ("decide", "'decide'"), ([decide, None], "[<function decide at ")]
)
def test_functions_are_one_or_a_list_of_them(given: object, shown: str) -> None:
    with pytest.raises(DefinitionError, match=re.escape(f"thing: decide={shown}")):
        decider(given)


def test_each_parameter_and_the_result_must_be_annotated() -> None:
    def bare(command, state):  # type: ignore[no-untyped-def]
        return []

    def half(command: Open, state) -> list[Opened]:  # type: ignore[no-untyped-def]
        return []

    def unsaid(command: Open, state: State):  # type: ignore[no-untyped-def]
        return []

    form = "its form is (command: ..., state: ...) -> ..., or (command: ..., state: ..., context: Context) -> ..."
    with says(
        f"...bare needs an annotation of the parameter `command` and the parameter `state` and the result: {form}"
    ):
        decider(bare)
    with says(f"...half needs an annotation of the parameter `state`: {form}"):
        decider(half)
    with says(f"...unsaid needs an annotation of the result: {form}"):
        decider(unsaid)
    with says("...unsaid needs an annotation of the result: its form is (state: ..., event: ...) -> ..."):
        decider(evolve=unsaid)


def test_an_annotation_must_exist() -> None:
    def unknown(command: "Nowhere", state: State) -> list[Opened]:  # type: ignore[name-defined]  # noqa: F821
        return []

    with says("...unknown: an annotation cannot be resolved: name 'Nowhere' is not defined"):
        decider(unknown)


def test_a_third_parameter_must_be_the_context() -> None:
    def alone(command: Open) -> Opened:
        return OPENED

    def seeing(command: Open, state: State, seen: Seen) -> Opened:
        return OPENED

    def four(command: Open, state: State, context: Context, more: int) -> Opened:
        return OPENED

    for function, number in ((alone, 1), (four, 4)):
        with says(
            f"...{function.__name__} must have the parameters (command, state), or (command, state, context: Context);"
            f" it has {number}"
        ):
            decider(function)
    with says("...seeing: its third parameter must be annotated Context, not Seen"):
        decider(seeing)
    with says("...decide must have the parameters (state, event); it has 3"):
        decider(evolve=decider_of_three())


def decider_of_three() -> Any:
    def decide(state: State, event: Opened, context: Context) -> State:
        return state

    return decide


@pytest.mark.parametrize(
    "annotation, shown",
    [
        (int, "int"),
        (Opened | str, "str"),
        (list[Opened | int], "list[tests.domain.test_decider.Opened | int]"),
        (list[Full], "list[tests.domain.test_decider.Full]"),
        (dict[str, Opened], "dict[str, tests.domain.test_decider.Opened]"),
        (list, "list"),
        (Event, "Event"),
        (Opened | Refusal, "Refusal"),
        (Open, "Open"),
        (Any, "Any"),
    ],
)
def test_a_result_names_events_lists_of_them_refusals_and_none(annotation: Any, shown: str) -> None:
    with says(
        f"...decide: its result names {shown}, which is neither a class of events, a list of events, a class of"
        " refusals nor None"
    ):
        decider(returning(None, annotation))


def test_annotated_messages_must_be_commands_and_events() -> None:
    def text(command: str, state: State) -> Opened:
        return OPENED

    def swapped(command: Opened, state: State) -> Opened:
        return OPENED

    def evolve_commands(state: State, event: Opened | Open) -> State:
        return state

    with says("...text: str must be a subclass of Command, or a union of subclasses"):
        decider(text)
    with says("...swapped: Opened must be a subclass of Command, or a union of subclasses"):
        decider(swapped)
    with says("...evolve_commands: Open must be a subclass of Event, or a union of subclasses"):
        decider(evolve=evolve_commands)


def test_claims_and_consults_must_take_what_the_decider_has() -> None:
    def claims(state: State, event: Closed) -> list[Take | Release]:
        return []

    def consults(command: Close) -> list[Consult]:
        return []

    def consults_two(command: Close, state: State) -> list[Consult]:
        return []

    with says("...claims takes Closed, which the `evolve` of thing does not take"):
        decider(evolve=evolve_opened, claims=claims)
    with says("...consults takes Close, which the `decide` of thing does not take"):
        decider(consults=consults)
    with says("...consults_two must have the parameter (command); it has 2"):
        decider([decide, close], consults=consults_two)


def test_a_command_has_the_key_and_an_event_may_have_it() -> None:
    class Rename(Command):
        name: str

    class Renamed(Event):
        thing_id: UUID | None

    def rename(command: Open | Rename, state: State) -> Opened:
        return OPENED

    def evolve_renamed(state: State, event: Opened | Renamed) -> State:
        return state

    with says("Rename needs a field `thing_id: UUID`, the key of thing streams"):
        decider(rename)
    with says(
        "Renamed.thing_id must be of type UUID, because it is the key of thing streams; leave the field out or rename "
        "it"
    ):
        decider(evolve=evolve_renamed)
    with says("Open needs a field `id: UUID`, the key of thing streams"):
        Decider("thing", key="id", initial=State(), decide=decide, evolve=evolve)
