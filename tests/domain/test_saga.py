"""The declaration of a saga and its mistakes, the bank's saga branch by branch, and the examples of the guide."""
# Without `from __future__ import annotations`: annotations of functions in a test name classes of that test.

import re
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
    transfers,
)
from bank.transfers.saga import STEP_TIMEOUT, transfer
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
    Refusal,
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
from headwater.testing import given, recorded

GUIDE = (Path(__file__).parents[2] / "docs" / "sagas.md").read_text(encoding="utf-8")
MINIMAL, _, OF_THE_BANK, WITH_TIMERS, TESTED = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
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
    """A message of the saga's own; no decider takes it."""


class No(Refusal):
    """It is refused."""


def decide(command: Open, state: int) -> Opened | No:
    return Opened(thing_id=command.thing_id)


def evolve_thing(state: int, event: Opened | Closed) -> int:
    return state


things = Decider(category="thing", key="thing_id", initial=0, decide=decide, evolve=evolve_thing)


def react(opened: int, event: Opened | Nudge | Refused[Open]) -> list[Do | Done]:
    return []


def evolve(opened: int, event: Opened) -> int:
    return opened + 1


def saga(
    name: str = "Thing",
    route: Any = "thing_id",
    react: Any = react,
    evolve: Any = evolve,
    **options: Any,
) -> Saga[Any]:
    return Saga(name, route, 0, react, evolve, **options)


def domain(*sagas: Saga[Any]) -> Domain:
    return Domain([Feature(deciders=[things]), *(Feature(sagas=[each]) for each in sagas)])


def definition_error(sentence: str) -> Any:
    return pytest.raises(DefinitionError, match=re.escape(sentence).replace(r"\.\.\.", ".*") + "$")


# -------------------------------------------------------------------------------------------------------- declarations


def test_a_saga_reads_its_inputs_from_the_annotations() -> None:
    made = saga(starts=[Opened], on_failure=Park())
    assert made.events == (Opened, Nudge)
    assert made.outcomes == ((Refused, Open),)
    assert made.evolve_of.keys() == {Opened}
    assert made.category == "saga Thing"
    assert made.stuck_after == timedelta(minutes=5)
    assert domain(made).saga_named("Thing") is made


def test_a_field_or_a_function_routes_an_event_to_its_instance() -> None:
    assert saga().keys_of(recorded(Opened(thing_id=KEY))) == (KEY,)
    other = saga(route=lambda event: event.data.other_id)
    assert domain(other).sagas == (other,)
    assert other.keys_of(recorded(Opened(thing_id=KEY))) == ()
    assert other.stream_of(KEY) == other.stream_of(KEY) != saga("Other").stream_of(KEY)


def test_a_route_may_answer_several_keys() -> None:
    made = saga(route=lambda event: [KEY, event.stream_id, KEY])
    assert made.keys_of(recorded(Opened(thing_id=KEY), stream_id=UUID(int=2))) == (KEY, UUID(int=2))
    with pytest.raises(TypeError, match=r"returned \[None\]; it must return a UUID, a list of them or None"):
        saga(route=lambda event: [None]).keys_of(recorded(Opened(thing_id=KEY)))


def test_an_event_without_the_field_is_routed_by_the_key_of_its_stream() -> None:
    class Moved(Event):
        pass

    def evolve_moved(state: int, event: Opened | Moved) -> int:
        return state

    def react_moved(state: int, event: Moved) -> list[Do]:
        return []

    moving = Saga("Moving", "thing_id", 0, react_moved, evolving(Moved))
    movers = Decider("thing", key="thing_id", initial=0, decide=decide, evolve=evolve_moved)
    assert Domain([Feature(deciders=[movers], sagas=[moving])]).sagas == (moving,)
    assert moving.keys_of(recorded(Moved(), stream_id=KEY)) == (KEY,)
    other = Saga("Moving", "other_id", 0, react_moved, evolving(Moved))
    with definition_error("Saga Moving: Moved has no required field `other_id: UUID`; use a function as the route"):
        Domain([Feature(deciders=[movers], sagas=[other])])


def evolving(taken: type[Event]) -> Any:
    def evolve(state: int, event: taken) -> int:  # type: ignore[valid-type]  # known at run time
        return state

    return evolve


def test_only_the_declared_events_begin_an_instance() -> None:
    assert saga().begins_with(Nudge())
    assert saga(starts=[Opened]).begins_with(Opened(thing_id=KEY))
    assert not saga(starts=[Opened]).begins_with(Nudge())


@pytest.mark.parametrize("name", ["", "a thing", "1st", "thing's"])
def test_a_saga_whose_name_is_no_identifier_is_refused(name: str) -> None:
    with definition_error(f"A saga's name is letters, digits and underscores, not {name!r}"):
        saga(name)


def test_functions_without_complete_annotations_are_refused() -> None:
    def bare(state, event):  # type: ignore[no-untyped-def]
        return []

    def alone(event: Opened) -> list[Do]:
        return []

    def silent(state: int, event: Opened):  # type: ignore[no-untyped-def]
        return []

    def unknown(state: int, event: "Nowhere") -> list[Do]:  # type: ignore[name-defined]  # noqa: F821
        return []

    for function in (bare, alone, silent):
        with definition_error(f"...{function.__name__} must have two parameters and a result, all annotated"):
            saga(react=function)
        with definition_error(f"...{function.__name__} must have two parameters and a result, all annotated"):
            saga(evolve=function)
    with definition_error("...unknown: an annotation cannot be resolved: name 'Nowhere' is not defined"):
        saga(react=unknown)


def test_functions_that_take_commands_or_return_no_list_are_refused() -> None:
    def lone(state: int, event: Opened) -> Do:
        raise AssertionError("it is declared, and never called")

    def bare_list(state: int, event: Opened) -> list:  # type: ignore[type-arg]
        return []

    def by_name(state: int, event: Opened) -> dict[str, Do]:
        return {}

    def of_a_command(state: int, event: Opened | Open) -> list[Do]:
        return []

    for function in (lone, bare_list, by_name):
        with definition_error(
            f"...{function.__name__} must be annotated to return a list of Do, Undo, After, Cancel or Done"
        ):
            saga(react=function)
    with definition_error(
        "...of_a_command: <class '...Open'> is neither an Event nor an outcome of a step, such as Refused[SendTransfer]"
    ):
        saga(react=of_a_command)


def test_outcomes_name_the_commands_of_steps() -> None:
    def bare(state: int, event: Opened | Refused) -> list[Do]:
        return []

    def of_an_event(state: int, event: Opened | TimedOut[Opened]) -> list[Do]:  # type: ignore[type-var]  # the mistake
        return []

    def of_another(state: int, event: Opened | Confirmed[Shut]) -> list[Do]:
        return []

    def not_issued(state: int, event: Opened | Refused[Open]) -> list[Do[Shut] | Done]:
        return []

    def issued(state: int, event: Opened | Refused[Open] | TimedOut[Open]) -> list[Do[Open] | Done]:
        return [Do(Shut(thing_id=KEY))]  # type: ignore[arg-type]  # the mistake

    with definition_error("...bare: Refused must name commands, as in Refused[SendTransfer | SettleTransfer]"):
        saga(react=bare)
    with definition_error("...of_an_event: TimedOut must name commands, as in TimedOut[SendTransfer | SettleTransfer]"):
        saga(react=of_an_event)
    with definition_error("The saga Thing takes Confirmed[Shut], but no decider's decide takes the command"):
        domain(saga(react=of_another))
    with definition_error(
        "The saga Thing takes Refused[Open], but none of its steps has the command: no annotation of a result of its"
        " react names Do[Open]"
    ):
        domain(saga(react=not_issued))
    made = saga(react=issued)
    assert (made.outcomes, made.steps) == (((Refused, Open), (TimedOut, Open)), (Open,))
    assert domain(made).sagas == (made,)
    with pytest.raises(TypeError, match="issued returned a step with Shut, which the annotation of its result"):
        given(made).when(Opened(thing_id=KEY))


def test_react_and_evolve_may_be_lists_of_functions() -> None:
    def opened(state: int, event: Opened) -> list[Do[Open]]:
        return [Do(Open(thing_id=KEY))]

    def refused(state: int, event: Refused[Open]) -> list[Done]:
        return [Done()]

    def again(state: int, event: Refused[Open]) -> list[Done]:
        return []

    made = saga(react=[opened, refused], evolve=[evolve])
    given(made).when(Opened(thing_id=KEY)).then([Open(thing_id=KEY)])
    given(made).when(Refused(command=Open(thing_id=KEY), refusal=No())).then([Done()])
    with definition_error("Refused[Open] is taken by both ...refused and ...again; remove it from one of them"):
        saga(react=[opened, refused, again])
    with definition_error("Thing: react=[] must be a function or a list of functions"):
        saga(react=[])


def test_evolve_must_not_take_an_event_that_react_does_not_take() -> None:
    def evolve_more(state: int, event: Opened | Closed | Confirmed[Open]) -> int:
        return state

    with definition_error(
        "Thing: its evolve takes Closed, Confirmed[Open], which it never receives: add it to what its react takes"
    ):
        saga(evolve=evolve_more)


def test_an_event_in_starts_must_be_one_that_react_takes() -> None:
    with definition_error("Thing: starts=Closed, which its react does not take"):
        saga(starts=[Opened, Closed])


def test_a_saga_that_would_stop_after_a_failure_is_refused() -> None:
    with definition_error("Thing: on_failure must end with Park(): Stop() would stop all instances"):
        saga(on_failure=Retry(then=Stop()))


@pytest.mark.parametrize("route", ["thing", "at", "other_id", "spare_id"])
def test_a_route_must_be_a_required_uuid_field(route: str) -> None:
    with definition_error(f"Saga Thing: Opened has no required field `{route}: UUID`; use a function as the route"):
        domain(saga(route=route))


def test_a_saga_that_takes_no_event_of_a_decider_is_refused() -> None:
    def react_alone(state: int, event: Nudge) -> list[Do]:
        return []

    def evolve_alone(state: int, event: Nudge) -> int:
        return state

    with definition_error(
        "The saga Thing takes no event of any decider, so that it would never begin; add one to its `react`"
    ):
        domain(saga(react=react_alone, evolve=evolve_alone))


def test_two_sagas_whose_names_differ_only_in_case_are_refused() -> None:
    with definition_error("The app has two declarations of a saga named 'THING'; rename one of them"):
        domain(saga(), saga("THING"))


# --------------------------------------------------------------------------------------------------------- reactions


def test_a_pivot_with_an_undo_is_refused() -> None:
    with definition_error("Open: a pivot is never undone; give it no undo"):
        Do(Open(thing_id=KEY), undo=Shut(thing_id=KEY), pivot=True)
    assert Do(Open(thing_id=KEY), pivot=True).undo is None


@pytest.mark.parametrize("within", [timedelta(0), timedelta(seconds=-1)])
def test_a_timeout_that_is_not_positive_is_refused(within: timedelta) -> None:
    with definition_error(f"Open: within={within} must be above 0"):
        Do(Open(thing_id=KEY), within=within)


def test_a_timeout_or_a_delay_longer_than_a_hundred_years_is_refused() -> None:
    for much in (timedelta.max, LONGEST + timedelta(seconds=1)):
        with definition_error(
            f"Open: within={much} is longer than a hundred years; leave it out for a step without a timeout"
        ):
            Do(Open(thing_id=KEY), within=much)
        with definition_error(f"Nudge: the delay of {much} is longer than a hundred years"):
            After(much, Nudge())
    assert Do(Open(thing_id=KEY), within=LONGEST).within == After(LONGEST, Nudge()).delay == LONGEST


def test_a_react_that_returns_something_else_raises() -> None:
    def react_wrongly(state: int, event: Opened) -> list[Do]:
        return [Open(thing_id=KEY)]  # type: ignore[list-item]

    wrong = saga(react=react_wrongly)
    with pytest.raises(TypeError, match=r"react_wrongly returned Open\(.*\); it must return Do, "):
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
        with pytest.raises(AssertionError, match=r"the reactions: expected \(-\) and returned \(\+\) differ"):
            followed.then(expected)
    with pytest.raises(AssertionError, match=r"\n  - 1\n  \+ 2$"):
        followed.remembers(1)


def test_then_compares_undos_timers_and_ends() -> None:
    followed = given(saga(react=react_with_all)).when(Closed(thing_id=KEY))
    followed.then([Shut(thing_id=KEY), Undo(), Cancel(Nudge), Done()])
    followed.then([Undo(Shut(thing_id=KEY)), Undo(), Cancel(Nudge), Done()])
    wrong: list[list[Any]] = [
        [Undo(), Undo(), Cancel(Nudge), Done()],
        [Shut(thing_id=KEY), Undo(), Cancel(), Done()],
    ]
    for expected in wrong:
        with pytest.raises(AssertionError, match=r"the reactions: expected \(-\) and returned \(\+\) differ"):
            followed.then(expected)


# ------------------------------------------------------------------------------------------------- the bank's transfer

T, A, B, FIVE = UUID(int=1), UUID(int=2), UUID(int=3), Decimal("5.00")
REQUESTED = TransferRequested(transfer_id=T, from_account_id=A, to_account_id=B, amount=FIVE, currency="EUR")


SEND = SendTransfer(account_id=A, transfer_id=T, amount=FIVE)
RECEIVE = ReceiveTransfer(account_id=B, transfer_id=T, amount=FIVE, currency="EUR")


def failures(command: Command) -> list[Refused | TimedOut]:
    return [Refused(command=command, refusal=No()), TimedOut(command=command)]


def test_a_requested_transfer_takes_five_steps() -> None:
    followed = given(transfer).when(REQUESTED)
    followed.then(
        [
            Do(
                SendTransfer(account_id=A, transfer_id=T, amount=FIVE),
                undo=ReturnTransfer(account_id=A, transfer_id=T, amount=FIVE),
                within=STEP_TIMEOUT,
            ),
            Do(NoteWithdrawn(transfer_id=T)),
            Do(
                ReceiveTransfer(account_id=B, transfer_id=T, amount=FIVE, currency="EUR"),
                within=STEP_TIMEOUT,
                pivot=True,
            ),
            Do(SettleTransfer(account_id=A, transfer_id=T)),
            Do(CompleteTransfer(transfer_id=T)),
            Done(),
        ]
    )
    followed.remembers(REQUESTED)


@pytest.mark.parametrize("failure", failures(SEND), ids=["refused", "timed out"])
def test_a_transfer_whose_money_cannot_leave_is_refused(failure: Refused | TimedOut) -> None:
    followed = given(transfer, [REQUESTED]).when(failure)
    followed.then([Do(RefuseTransfer(transfer_id=T, reason=failure.code)), Done()])
    followed.remembers(REQUESTED)


@pytest.mark.parametrize("failure", failures(RECEIVE), ids=["refused", "timed out"])
def test_a_transfer_whose_money_cannot_arrive_is_refunded(failure: Refused | TimedOut) -> None:
    given(transfer, [REQUESTED]).when(failure).then([Do(RefundTransfer(transfer_id=T, reason=failure.code)), Done()])


@pytest.mark.parametrize(
    "command",
    [
        NoteWithdrawn(transfer_id=T),
        SettleTransfer(account_id=A, transfer_id=T),
        CompleteTransfer(transfer_id=T),
        RefuseTransfer(transfer_id=T, reason="NO"),
        RefundTransfer(transfer_id=T, reason="NO"),
    ],
    ids=lambda command: type(command).__name__,
)
def test_a_refusal_of_a_step_that_cannot_be_refused_raises(command: Command) -> None:
    with pytest.raises(RuntimeError, match=f"{type(command).__name__} was refused with NO"):
        given(transfer, [REQUESTED]).when(Refused(command=command, refusal=No()))


def test_a_transfer_begins_only_with_its_request() -> None:
    assert transfer.events == (TransferRequested,)
    assert transfer.outcomes[:2] == ((Refused, SendTransfer), (TimedOut, SendTransfer))
    assert transfer.keys_of(recorded(REQUESTED)) == (T,)


# ------------------------------------------------------------------------------------------------------------ the guide


def run(example: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "guide"}
    exec(compile(example, "sagas.md", "exec", dont_inherit=True), namespace)  # the guide is trusted
    return namespace


def test_the_minimal_saga_of_the_guide_moves_money() -> None:
    guide = run(MINIMAL)
    move_money = guide["move_money"]
    assert Domain([Feature(deciders=[accounts, transfers]), guide["feature"]]).sagas == (move_money,)
    given(move_money).when(REQUESTED).then(
        [
            Do(
                SendTransfer(account_id=A, transfer_id=T, amount=FIVE),
                undo=ReturnTransfer(account_id=A, transfer_id=T, amount=FIVE),
            ),
            Do(ReceiveTransfer(account_id=B, transfer_id=T, amount=FIVE, currency="EUR")),
            Done(),
        ]
    )


def test_the_saga_with_timers_of_the_guide_closes_unused_accounts() -> None:
    guide = run(WITH_TIMERS)
    unused, still_empty = guide["unused"], guide["StillEmpty"](account_id=A)
    assert Domain([Feature(deciders=[accounts]), guide["feature"]]).sagas == (unused,)
    opened = AccountOpened(account_id=A, owner_id=B, currency="EUR")
    remind = After(timedelta(days=90), still_empty)
    given(unused).when(opened).then([remind])
    given(unused, [opened]).when(AccountFrozen(account_id=A)).then([Cancel(guide["StillEmpty"])])
    given(unused, [opened]).when(AccountUnfrozen(account_id=A)).then([remind])
    given(unused, [opened]).when(MoneyDeposited(account_id=A, amount=FIVE, balance=FIVE)).then([Done()])
    closing = given(unused, [opened]).when(still_empty)
    closing.then([CloseAccount(account_id=A), Done()])
    closing.remembers(opened)


def test_the_guide_shows_the_code_of_the_banks_saga() -> None:
    assert OF_THE_BANK in Path(transfers_saga.__file__).read_text(encoding="utf-8")


def test_the_tests_that_the_guide_shows_pass_and_can_fail() -> None:
    guide = run(TESTED)
    tests = [each for name, each in guide.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()
    guide["transfer"] = saga()  # a saga that returns no steps
    for test in tests:
        with pytest.raises(AssertionError):
            test()


def test_the_guide_lists_every_parameter_of_a_saga() -> None:
    [table] = re.findall(r"\| parameter \|.*?\n\n", GUIDE, re.DOTALL)
    listed = {name for first in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for name in first.split(", ")}
    assert listed == {f"`{name}`" for name, each in Saga.__dataclass_fields__.items() if each.init}
