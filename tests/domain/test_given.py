"""`given(...)` of a decider is as strict as a server, and says in one readable difference what a test got wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import pytest
from msgspec import Meta

from bank.accounts.domain import AccountOpened, accounts
from bank.users.domain import ChangeEmail, EmailTaken, RegisterUser, UserRegistered, users
from headwater import Command, Consult, Context, Decider, Event, InvalidInput, Refusal
from headwater.errors import UndeclaredAnswer, UnreadableEvent
from headwater.testing import given

A, B = UUID(int=1), UUID(int=2)
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


class TooLate(Refusal):
    """It is over."""

    ended_at: datetime


class Book(Command):
    desk_id: UUID
    room_id: UUID
    seats: Annotated[int, Meta(ge=1, le=9)] = 1
    note: str = ""


class Booked(Event):
    seats: int
    by: str | None = None
    ratio: float = 1.0


class Moved(Event):
    desk_id: UUID


def book(command: Book, booked: int, context: Context) -> list[Booked | Moved] | TooLate:
    if context.now > NOON or context.seen.of(desks, command.room_id):
        return TooLate(ended_at=NOON)
    if command.note == "refuse":
        return EmailTaken(email="")  # type: ignore[return-value]  # the mistake
    ratio = float("inf") if command.note == "infinite" else 1.0
    return [Booked(seats=command.seats, by=context.actor, ratio=ratio)]


def evolve(booked: int, event: Booked | Moved) -> int:
    return booked + 1


def consults(command: Book) -> list[Consult]:
    return [Consult(desks, command.room_id)]


desks = Decider("desk", key="desk_id", initial=0, decide=book, evolve=evolve, consults=consults)
BOOK = Book(desk_id=A, room_id=B)


def test_the_clock_and_the_actor_of_the_context_are_given() -> None:
    given(desks).when(BOOK, now=NOON, actor="ada").then([Booked(seats=1, by="ada")])
    given(desks).when(BOOK, now=NOON.replace(hour=13)).refused(TooLate(ended_at=NOON))
    given(desks).when(BOOK, seeing={B: given(desks, [Booked(seats=1)])}).refused(TooLate(ended_at=NOON))


def test_a_field_out_of_its_bounds_is_refused_as_the_input_of_a_client_is() -> None:
    many = Book(desk_id=A, room_id=B, seats=10)
    given(desks).when(many).refused(InvalidInput(path=["seats"], complaint="Expected at most 9"))
    given(desks).when(Book(desk_id=A, room_id=B, note="\0")).refused(
        InvalidInput(path=["note"], complaint="Expected text without NUL characters and lone surrogates")
    )


def test_a_claim_of_another_stream_refuses_the_command() -> None:
    register = RegisterUser(user_id=A, email="Ada@example.org", name="Ada")
    registered = UserRegistered(user_id=A, email="Ada@example.org", name="Ada")
    taken = [("email", "ada@example.org")]
    given(users).when(register, taken=[("name", "ada@example.org")]).then([registered])
    given(users).when(register, taken=taken).refused(EmailTaken(email="Ada@example.org"))
    given(users, [registered]).when(ChangeEmail(user_id=A, email="ADA@example.org"), taken=taken)


def test_what_a_server_would_not_write_fails_the_test() -> None:
    with pytest.raises(UndeclaredAnswer, match="book refuses with EmailTaken"):
        given(desks).when(Book(desk_id=A, room_id=B, note="refuse"))
    with pytest.raises(UnreadableEvent, match="Booked cannot be written"):
        given(desks).when(Book(desk_id=A, room_id=B, note="infinite"))
    with pytest.raises(UnreadableEvent, match="Booked cannot be written"):
        given(desks, [Booked(seats="1")])  # type: ignore[arg-type]  # the mistake


def test_a_history_is_of_one_stream_and_the_command_is_for_it() -> None:
    with pytest.raises(AssertionError, match=f"^the history is of two streams, desk {A} and {B}$"):
        given(desks, [Moved(desk_id=A), Booked(seats=1), Moved(desk_id=B)])
    with pytest.raises(AssertionError, match=f"^Book is for desk {A}; the history is that of {B}$"):
        given(desks, [Moved(desk_id=B)]).when(BOOK)
    with pytest.raises(AssertionError, match=f"^the history that is seen as {B} is that of {A}$"):
        given(desks).when(BOOK, seeing={B: given(desks, [Moved(desk_id=A)])})
    opened = AccountOpened(account_id=A, owner_id=B, currency="EUR")
    with pytest.raises(AssertionError, match="Book does not consult all of"):
        given(desks).when(BOOK, seeing={A: given(accounts, [opened])})


@pytest.mark.parametrize(
    "expected, lines",
    [
        ([Booked(seats=2, by="ada")], ["  - Booked.seats = 2", "  + Booked.seats = 1"]),
        ([], ["  + Booked(seats=1, by='ada', ratio=1.0)"]),
        (
            [Booked(seats=1, by="ada"), Moved(desk_id=B)],
            ["    Booked(seats=1, by='ada', ratio=1.0)", f"  - Moved(desk_id={B!r})"],
        ),
        ([Moved(desk_id=B)], [f"  - Moved(desk_id={B!r})", "  + Booked(seats=1, by='ada', ratio=1.0)"]),
    ],
)
def test_a_failing_test_shows_one_difference_field_by_field(expected: list[Event], lines: list[str]) -> None:
    outcome = given(desks).when(BOOK, actor="ada")
    with pytest.raises(AssertionError) as failed:
        outcome.then(expected)
    assert str(failed.value).split("\n") == ["Book: expected (-) and returned (+) differ", *lines]


def test_a_refusal_and_events_are_compared_in_the_same_way() -> None:
    with pytest.raises(AssertionError) as failed:
        given(desks).when(BOOK, actor="ada").refused(TooLate(ended_at=NOON))
    assert str(failed.value).split("\n")[1:] == [
        f"  - TooLate(ended_at={NOON!r})",
        "  + Booked(seats=1, by='ada', ratio=1.0)",
    ]
    with pytest.raises(AssertionError, match=r"\n  - Booked\(.*\n  \+ TooLate\("):
        given(desks).when(BOOK, now=NOON.replace(hour=13)).then([Booked(seats=1)])
