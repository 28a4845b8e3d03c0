"""Declaring a saga: a mistake stops the start with a sentence. And the bank's saga, branch by branch."""
# Annotations are evaluated here, so that the classes can stand in the tests that they belong to.

import re
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import bank.transfers.saga as transfers_saga
from bank.accounts.domain import (
    AccountFrozen,
    AccountOpened,
    AccountUnfrozen,
    CloseAccount,
    MoneyDeposited,
    ReceiveTransfer,
    ReturnTransfer,
    SendTransfer,
    SettleTransfer,
    accounts,
)
from bank.transfers.domain import (
    CompleteTransfer,
    NoteWithdrawn,
    RefundTransfer,
    RefuseTransfer,
    TransferRequested,
)
from bank.transfers.saga import PATIENCE, transfer
from headwater import (
    After,
    Cancel,
    Command,
    Confirmed,
    Decider,
    Do,
    Done,
    Event,
    Feature,
    Park,
    Refused,
    Retry,
    Saga,
    Stop,
    TimedOut,
    Undo,
)
from headwater.domain.feature import Domain
from headwater.domain.saga import LONGEST
from headwater.errors import DefinitionError
from headwater.testing import given

GUIDE = (Path(__file__).parents[2] / "docs" / "sagas.md").read_text(encoding="utf-8")
DECLARED, OF_THE_BANK, TESTED = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
KEY = UUID(int=1)


class Open(Command):
    thing_id: UUID


class Shut(Command):
    thing_id: UUID


class Opened(Event):
    thing_id: UUID
    at: str = ""
    other_id: UUID | None = None
    spare_id: UUID = KEY


class Closed(Event):
    thing_id: UUID


class Nudge(Event):
    """A message of the saga's own: no decider has it."""


def decide(command: Open, state: int) -> list[Opened]:
    return [Opened(thing_id=command.thing_id)]


def evolve_thing(state: int, event: Opened | Closed) -> int:
    return state


things = Decider(category="thing", key="thing_id", initial=0, decide=decide, evolve=evolve_thing)


def react(opened: int, event: Opened | Nudge | Refused) -> list[Do | Done]:
    return []


def evolve(opened: int, event: Opened) -> int:
    return opened + 1


def saga(
    name: str = "Thing",
    route: str | Callable[[Any], UUID | None] = "thing_id",
    react: Callable[..., Any] = react,
    evolve: Callable[..., Any] = evolve,
    **options: Any,
) -> Saga[Any, Any]:
    return Saga(name, route, 0, react, evolve, **options)


def domain(*sagas: Saga[Any, Any]) -> Domain:
    return Domain([Feature(deciders=[things]), *(Feature(sagas=[each]) for each in sagas)])


def says(sentence: str) -> Any:
    return pytest.raises(DefinitionError, match=re.escape(sentence).replace(r"\.\.\.", ".*") + "$")


# -------------------------------------------------------------------------------------------------------- declarations


def test_what_is_right_is_taken() -> None:
    made = saga(starts=[Opened], on_failure=Park())
    assert made.events == (Opened, Nudge)
    assert made.outcomes == (Refused,)
    assert made.evolves == {Opened}
    assert made.category == "saga Thing"
    assert made.stuck_after == timedelta(minutes=5)
    assert domain(made).saga_named("Thing") is made


def test_an_instance_is_found_by_a_field_or_a_function() -> None:
    assert saga().key_of(Opened(thing_id=KEY)) == KEY
    other = saga(route=lambda event: event.other_id)
    assert domain(other).sagas == (other,)
    assert other.key_of(Opened(thing_id=KEY)) is None
    assert other.stream_of(KEY) == other.stream_of(KEY) != saga("Other").stream_of(KEY)


def test_what_begins_an_instance() -> None:
    assert saga().begins_with(Nudge())
    assert saga(starts=[Opened]).begins_with(Opened(thing_id=KEY))
    assert not saga(starts=[Opened]).begins_with(Nudge())


@pytest.mark.parametrize("name", ["", "a thing", "1st", "thing's"])
def test_a_name_that_is_none(name: str) -> None:
    with says(f"A saga's name is letters, digits and underscores, not {name!r}"):
        saga(name)


def test_functions_that_are_not_annotated() -> None:
    def bare(state, event):  # type: ignore[no-untyped-def]
        return []

    def alone(event: Opened) -> list[Do]:
        return []

    def silent(state: int, event: Opened):  # type: ignore[no-untyped-def]
        return []

    def unknown(state: int, event: "Nowhere") -> list[Do]:  # type: ignore[name-defined]  # noqa: F821
        return []

    for function in (bare, alone, silent):
        with says(f"...{function.__name__} must have two parameters, each annotated, and an annotated result"):
            saga(react=function)
        with says(f"...{function.__name__} must have two parameters, each annotated, and an annotated result"):
            saga(evolve=function)
    with says("...unknown: an annotation cannot be resolved: name 'Nowhere' is not defined"):
        saga(react=unknown)


def test_functions_that_give_or_take_what_they_cannot() -> None:
    def lone(state: int, event: Opened) -> Do:
        raise AssertionError("it is declared, and never called")

    def bare_list(state: int, event: Opened) -> list:  # type: ignore[type-arg]
        return []

    def by_name(state: int, event: Opened) -> dict[str, Do]:
        return {}

    def of_a_command(state: int, event: Opened | Open) -> list[Do]:
        return []

    for function in (lone, bare_list, by_name):
        with says(f"...{function.__name__} must be annotated to return a list of Do, Undo, After, Cancel or Done"):
            saga(react=function)
    with says("...of_a_command: <class '...Open'> is neither an Event nor Confirmed, Refused or TimedOut"):
        saga(react=of_a_command)


def test_evolve_takes_no_more_than_react() -> None:
    def evolve_more(state: int, event: Opened | Closed | Confirmed) -> int:
        return state

    with says("...evolve_more takes Closed, Confirmed, which would never come: ...react does not take it"):
        saga(evolve=evolve_more)


def test_what_starts_it_is_taken() -> None:
    with says("Thing: starts=Closed, which ...react does not take"):
        saga(starts=[Opened, Closed])


def test_it_cannot_stop_for_one_instance() -> None:
    with says("Thing: a saga cannot stop for one instance; on_failure ends with Park()"):
        saga(on_failure=Retry(then=Stop()))


@pytest.mark.parametrize("route", ["thing", "at", "other_id", "spare_id"])
def test_the_routes_field_is_a_uuid_that_is_always_there(route: str) -> None:
    with says(f"Opened has no field `{route}: UUID` to find its Thing saga by; give the Saga a function as its route"):
        domain(saga(route=route))


def test_something_must_begin_it() -> None:
    def react_alone(state: int, event: Nudge) -> list[Do]:
        return []

    def evolve_alone(state: int, event: Nudge) -> int:
        return state

    with says("The saga Thing takes no event of any decider: it would never begin"):
        domain(saga(react=react_alone, evolve=evolve_alone))


def test_two_with_one_name() -> None:
    with says("Two of the app's features bring a saga named 'THING'"):
        domain(saga(), saga("THING"))


# ------------------------------------------------------------------------------------------------------ what it gives


def test_a_pivot_has_no_undo() -> None:
    with says("Open: a pivot is never undone; give it no undo"):
        Do(Open(thing_id=KEY), undo=Shut(thing_id=KEY), pivot=True)
    assert Do(Open(thing_id=KEY), pivot=True).undo is None


@pytest.mark.parametrize("within", [timedelta(0), timedelta(seconds=-1)])
def test_a_step_has_some_time(within: timedelta) -> None:
    with says(f"Open: within={within} leaves it no time"):
        Do(Open(thing_id=KEY), within=within)


def test_nothing_is_due_after_the_end_of_time() -> None:
    for much in (timedelta.max, LONGEST + timedelta(seconds=1)):
        with says(f"Open: within={much} is more than a hundred years; leave it out, and it may take for ever"):
            Do(Open(thing_id=KEY), within=much)
        with says(f"Nudge: a delay of {much} is more than a hundred years"):
            After(much, Nudge())
    assert Do(Open(thing_id=KEY), within=LONGEST).within == After(LONGEST, Nudge()).delay == LONGEST


def test_what_is_no_reaction_is_an_error() -> None:
    def react_wrongly(state: int, event: Opened) -> list[Do]:
        return [Open(thing_id=KEY)]  # type: ignore[list-item]

    wrong = saga(react=react_wrongly)
    with pytest.raises(TypeError, match=r"react_wrongly gave Open\(.*\); it gives Do, Undo, After, Cancel or Done"):
        given(wrong).when(Opened(thing_id=KEY))


# ---------------------------------------------------------------------------------------------- given, when, then


def react_with_all(opened: int, event: Opened | Closed) -> list[Do | Undo | After | Cancel | Done]:
    match event:
        case Opened():
            return [Do(Open(thing_id=KEY), within=timedelta(seconds=1)), After(timedelta(days=opened), Nudge())]
        case Closed():
            return [Undo(Shut(thing_id=KEY)), Undo(), Cancel(Nudge), Done()]


def test_then_compares_whole_steps_or_their_commands() -> None:
    followed = given(saga(react=react_with_all), [Opened(thing_id=KEY), Closed(thing_id=KEY)]).when(
        Opened(thing_id=KEY)
    )
    nudge = After(timedelta(days=2), Nudge())  # evolve comes first
    followed.then([Open(thing_id=KEY), nudge])
    followed.then([Do(Open(thing_id=KEY), within=timedelta(seconds=1)), nudge])
    followed.remembers(2)
    wrong: list[list[Any]] = [
        [],
        [Open(thing_id=KEY)],
        [Open(thing_id=KEY), nudge, Done()],
        [nudge, Open(thing_id=KEY)],
        [Open(thing_id=UUID(int=2)), nudge],
        [Do(Open(thing_id=KEY)), nudge],
        [Open(thing_id=KEY), After(timedelta(days=1), Nudge())],
    ]
    for expected in wrong:
        with pytest.raises(AssertionError, match=r"gave .* expected"):
            followed.then(expected)
    with pytest.raises(AssertionError, match="remembers 2; expected 1"):
        followed.remembers(1)


def test_then_takes_what_else_follows() -> None:
    followed = given(saga(react=react_with_all)).when(Closed(thing_id=KEY))
    followed.then([Shut(thing_id=KEY), Undo(), Cancel(Nudge), Done()])
    followed.then([Undo(Shut(thing_id=KEY)), Undo(), Cancel(Nudge), Done()])
    wrong: list[list[Any]] = [
        [Undo(), Undo(), Cancel(Nudge), Done()],
        [Shut(thing_id=KEY), Undo(), Cancel(), Done()],
    ]
    for expected in wrong:
        with pytest.raises(AssertionError, match=r"gave .* expected"):
            followed.then(expected)


# ------------------------------------------------------------------------------------------------- the bank's transfer

T, A, B, FIVE = UUID(int=1), UUID(int=2), UUID(int=3), Decimal("5.00")
REQUESTED = TransferRequested(transfer_id=T, from_account_id=A, to_account_id=B, amount=FIVE, currency="EUR")


def failures(command: str) -> list[Refused | TimedOut]:
    return [Refused(command=command, code="NO", facts={"a": 1}), TimedOut(command=command)]


def test_a_request_is_five_steps() -> None:
    followed = given(transfer).when(REQUESTED)
    followed.then(
        [
            Do(
                SendTransfer(account_id=A, transfer_id=T, amount=FIVE),
                undo=ReturnTransfer(account_id=A, transfer_id=T, amount=FIVE),
                within=PATIENCE,
            ),
            Do(NoteWithdrawn(transfer_id=T)),
            Do(
                ReceiveTransfer(account_id=B, transfer_id=T, amount=FIVE, currency="EUR"),
                within=PATIENCE,
                pivot=True,
            ),
            Do(SettleTransfer(account_id=A, transfer_id=T)),
            Do(CompleteTransfer(transfer_id=T)),
            Done(),
        ]
    )
    followed.remembers(REQUESTED)


@pytest.mark.parametrize("failure", failures("SendTransfer"), ids=["refused", "late"])
def test_money_that_cannot_leave_is_a_refused_transfer(failure: Refused | TimedOut) -> None:
    followed = given(transfer, [REQUESTED]).when(failure)
    followed.then([Do(RefuseTransfer(transfer_id=T, reason=failure.code)), Done()])
    followed.remembers(REQUESTED)


@pytest.mark.parametrize("failure", failures("ReceiveTransfer"), ids=["refused", "late"])
def test_money_that_cannot_arrive_is_a_refunded_transfer(failure: Refused | TimedOut) -> None:
    given(transfer, [REQUESTED]).when(failure).then([Do(RefundTransfer(transfer_id=T, reason=failure.code)), Done()])


@pytest.mark.parametrize(
    "command", ["NoteWithdrawn", "SettleTransfer", "CompleteTransfer", "RefuseTransfer", "RefundTransfer"]
)
def test_books_that_refuse_are_for_a_person(command: str) -> None:
    for failure in failures(command):
        with pytest.raises(RuntimeError, match=f"{command} was refused with {failure.code}"):
            given(transfer, [REQUESTED]).when(failure)


def test_a_transfer_begins_with_its_request() -> None:
    assert transfer.events == (TransferRequested,)
    assert transfer.outcomes == (Refused, TimedOut)
    assert transfer.key_of(REQUESTED) == T
    with pytest.raises(AssertionError):
        given(transfer).when(TimedOut(command="SendTransfer"))


# ------------------------------------------------------------------------------------------------------------ the guide


def run(example: str) -> dict[str, Any]:
    said: dict[str, Any] = {"__name__": "guide"}
    exec(compile(example, "sagas.md", "exec", dont_inherit=True), said)  # it is our own
    return said


def test_the_guides_saga_is_a_feature_of_the_bank() -> None:
    said = run(DECLARED)
    unused, still_empty = said["unused"], said["StillEmpty"](account_id=A)
    assert Domain([Feature(deciders=[accounts]), said["feature"]]).sagas == (unused,)
    opened = AccountOpened(account_id=A, owner_id=B, currency="EUR")
    remind = After(timedelta(days=90), still_empty)
    given(unused).when(opened).then([remind])
    given(unused, [opened]).when(AccountFrozen(account_id=A)).then([Cancel(said["StillEmpty"])])
    given(unused, [opened]).when(AccountUnfrozen(account_id=A)).then([remind])
    given(unused, [opened]).when(MoneyDeposited(account_id=A, amount=FIVE, balance=FIVE)).then([Done()])
    closing = given(unused, [opened]).when(still_empty)
    closing.then([CloseAccount(account_id=A), Done()])
    closing.remembers(opened)


def test_the_guide_shows_the_banks_saga_as_it_is() -> None:
    assert OF_THE_BANK in Path(transfers_saga.__file__).read_text(encoding="utf-8")


def test_the_guides_tests_pass_and_can_fail() -> None:
    said = run(TESTED)
    tests = [each for name, each in said.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()
    said["transfer"] = saga()  # gives nothing
    for test in tests:
        with pytest.raises(AssertionError):
            test()


def test_the_guide_names_every_parameter() -> None:
    [table] = re.findall(r"\| parameter \|.*?\n\n", GUIDE, re.DOTALL)
    listed = {name for first in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for name in first.split(", ")}
    assert listed == {f"`{name}`" for name, each in Saga.__dataclass_fields__.items() if each.init}
