"""Claims: a value that one stream holds among all streams."""

from __future__ import annotations

import asyncio
from secrets import token_urlsafe

import asyncpg
from tests.support.dispatching import Process, Start, register, stream
from tests.support.trips import TRIPS, Book

from bank.users.domain import ChangeEmail, EmailTaken
from headwater.commands.dispatcher import Accepted
from headwater.domain.claims import LARGEST_CLAIM
from headwater.domain.messages import InvalidInput
from headwater.ids import new_id


async def test_one_of_many_users_that_register_one_address_is_accepted(bank: Process, other: Process) -> None:
    answers = await asyncio.gather(*(each.ask(register("ada@example.org")) for each in (bank, other) for _ in range(5)))
    assert sum(isinstance(answer, Accepted) for answer in answers) == 1
    refusals = [answer for answer in answers if isinstance(answer, EmailTaken)]
    assert len(refusals) == 9
    assert {refusal.email for refusal in refusals} == {"ada@example.org"}
    assert await bank.ask(register("ADA@example.org")) == EmailTaken(email="ADA@example.org")


async def test_a_changed_address_can_be_claimed_by_another_user(bank: Process, connection: asyncpg.Connection) -> None:
    ada, grace = new_id(), new_id()
    await bank(register("ada@example.org", ada))
    await bank(register("grace@example.org", grace))
    assert await bank.ask(ChangeEmail(user_id=grace, email="ada@example.org")) == EmailTaken(email="ada@example.org")
    await bank(ChangeEmail(user_id=ada, email="lovelace@example.org"))
    await bank(ChangeEmail(user_id=ada, email="Lovelace@example.org"))  # differs in capitals only
    await bank(ChangeEmail(user_id=grace, email="ada@example.org"))
    claims = await connection.fetch("select name, value, stream_id from headwater.claims order by value")
    assert [tuple(claim) for claim in claims] == [
        ("email", "ada@example.org", grace),
        ("email", "lovelace@example.org", ada),
    ]


async def test_concurrent_changes_in_a_ring_never_give_one_address_to_two_users(bank: Process) -> None:
    """Each user takes the address of the next one, all at once. Every command is answered, and no address is lost."""
    users = [new_id() for _ in range(6)]
    await asyncio.gather(*(bank(register(f"{place}@example.org", user)) for place, user in enumerate(users)))
    answers = await asyncio.gather(
        *(bank.ask(ChangeEmail(user_id=user, email=f"{place + 1}@example.org")) for place, user in enumerate(users))
    )
    assert {type(answer) for answer in answers} <= {Accepted, EmailTaken}
    assert isinstance(answers[-1], Accepted)
    now = [(await stream(bank, user))[-1].email for user in users]  # type: ignore[attr-defined]  # a user's events
    assert len(set(now)) == 6


async def test_a_commands_claims_are_applied_in_the_order_of_its_events(
    process: Start, connection: asyncpg.Connection
) -> None:
    trips, trip_id = await process(TRIPS), new_id()
    await trips(Book(trip_id=trip_id, seats=["1a", "1b", "1a", "1c", "1c"]))
    assert [tuple(row) for row in await connection.fetch("select * from headwater.claims")] == [("seat", "1c", trip_id)]


async def test_a_claim_larger_than_the_index_holds_is_invalid_input(
    process: Start, connection: asyncpg.Connection
) -> None:
    """The limit holds for every text. Random text takes the most room in the index, since it cannot be compressed."""
    trips = await process(TRIPS)
    random = token_urlsafe(LARGEST_CLAIM)
    fits = random[: LARGEST_CLAIM - len("seat")]
    assert (await trips(Book(trip_id=new_id(), seats=[fits]))).version == 1
    for seat in (random[:LARGEST_CLAIM], "ö" * (LARGEST_CLAIM // 2)):
        complaint = "Expected at most 2500 bytes in the claim 'seat', its name included, not 2504"
        refused = await trips.ask(Book(trip_id=new_id(), seats=["1a", seat]))
        assert refused == InvalidInput(path=[], complaint=complaint)
    assert await connection.fetchval("select position from headwater.head") == 1
    assert [row["value"] for row in await connection.fetch("select value from headwater.claims")] == [fits]
