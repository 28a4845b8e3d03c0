"""Decisions that consult other streams: refusals rest on current states, and consulting disturbs no other command."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from uuid import UUID

import pytest
from tests.support.dispatching import Process, Start, deposit, opened, register, state, stream, withdraw

from bank.accounts.domain import Account, AccountNotFound, AccountStatus, OpenAccount
from bank.transfers.domain import RequestTransfer, TransferRequested
from bank.users.domain import AlreadyExists, ChangeEmail
from headwater import Command, Consult, Context, Decider, Event, Feature, Refusal
from headwater.commands.dispatcher import Accepted
from headwater.domain.feature import Domain
from headwater.domain.messages import InvalidInput
from headwater.errors import DefinitionError
from headwater.ids import new_id


def request(source: UUID, transfer_id: UUID | None = None) -> RequestTransfer:
    """Return a request to transfer 5 from an account to one that does not exist."""
    return RequestTransfer(
        transfer_id=transfer_id or new_id(), from_account_id=source, to_account_id=new_id(), amount=Decimal(5)
    )


class Shut(Refusal):
    """The gate is shut."""

    times: int


class SetGate(Command):
    gate_id: UUID
    shut: bool


class GateSet(Event):
    gate_id: UUID
    shut: bool


class Enter(Command):
    visit_id: UUID
    gate_id: UUID


class Entered(Event):
    visit_id: UUID


def decide_gate(command: SetGate, shut: tuple[bool, ...]) -> GateSet:
    return GateSet(gate_id=command.gate_id, shut=command.shut)


def evolve_gate(shut: tuple[bool, ...], event: GateSet) -> tuple[bool, ...]:
    return (*shut, event.shut)


def decide_visit(command: Enter, state: int, context: Context) -> Entered | Shut:
    history = context.seen.of(gates, command.gate_id)
    if history and history[-1]:
        return Shut(times=sum(history))
    return Entered(visit_id=command.visit_id)


def evolve_visit(state: int, event: Entered) -> int:
    return state + 1


def consults_gate(command: Enter) -> Sequence[Consult]:
    return [Consult(gates, command.gate_id)]


gates = Decider("gate", "gate_id", tuple[bool, ...](), decide_gate, evolve_gate)
visits = Decider("visit", "visit_id", 0, decide_visit, evolve_visit, consults=consults_gate)
PARK = Domain([Feature(deciders=[gates, visits])])


def enter(gate_id: UUID, visit_id: UUID | None = None) -> Enter:
    return Enter(visit_id=visit_id or new_id(), gate_id=gate_id)


@pytest.mark.parametrize("cache", [1000, 1], ids=["cached", "evicted"])
async def test_a_refusal_never_rests_on_an_outdated_consulted_state(process: Start, other: Process, cache: int) -> None:
    bank, account_id, transfer_id = await process(cache=cache), new_id(), new_id()
    assert await bank.ask(request(account_id)) == AccountNotFound(account_id=account_id)
    await other(OpenAccount(account_id=account_id, owner_id=new_id(), currency="USD"))
    assert (await bank(request(account_id, transfer_id))).version == 1
    (requested,) = await stream(bank, transfer_id)
    assert isinstance(requested, TransferRequested)
    assert requested.currency == "USD"


async def test_a_consulted_state_is_read_again_before_a_refusal_but_not_before_an_acceptance(process: Start) -> None:
    park, beside, gate_id, visit_id = await process(PARK), await process(PARK), new_id(), new_id()
    await park(SetGate(gate_id=gate_id, shut=True))
    await beside(SetGate(gate_id=gate_id, shut=True))
    assert await park.ask(enter(gate_id)) == Shut(times=2)  # both events of the gate
    await beside(SetGate(gate_id=gate_id, shut=False))
    assert (await park(enter(gate_id, visit_id))).version == 1
    # An acceptance may rest on the cached state, and reads nothing.
    reads = park.log.reads[gate_id]
    await beside(SetGate(gate_id=gate_id, shut=True))
    assert (await park(enter(gate_id, visit_id))).version == 2
    assert park.log.reads[gate_id] == reads
    await park(SetGate(gate_id=gate_id, shut=True))
    assert await park.ask(enter(gate_id, visit_id)) == Shut(times=4)


async def test_concurrent_commands_share_one_read_of_a_consulted_stream(bank: Process, other: Process) -> None:
    account_id, missing = await opened(bank), new_id()
    await asyncio.gather(*(other(request(account_id)) for _ in range(20)))
    assert other.log.reads[account_id] == 1
    # The stream was read for this very command, so the refusal needs no second read.
    assert await other.ask(request(missing)) == AccountNotFound(account_id=missing)
    assert other.log.reads[missing] == 1


async def test_consulting_a_busy_stream_makes_no_command_on_it_decide_again(bank: Process) -> None:
    account_id, transfer_id = await opened(bank), new_id()
    await bank(request(account_id, transfer_id))
    answers = await asyncio.gather(
        *(
            bank.ask(command)
            for place in range(100)
            for command in (
                deposit(account_id, 1),
                request(account_id),
                *([request(account_id, transfer_id)] if place % 10 == 0 else []),
            )
        )
    )
    assert Counter(type(answer) for answer in answers) == {Accepted: 200, AlreadyExists: 10}
    assert 0 < bank.log.reads[account_id] <= 10, "only refusals read it, and concurrent refusals share a read"
    assert await state(bank, account_id) == Account(AccountStatus.OPEN, Decimal(100), "EUR")
    assert (await bank(withdraw(account_id, 100))).version == 102


async def test_a_repeated_command_that_consults_returns_its_first_result(bank: Process, other: Process) -> None:
    account_id, command_id = await opened(bank), new_id()
    command = request(account_id)
    first = await bank(command, command_id=command_id)
    assert [await each(command, command_id=command_id) for each in (bank, other)] == [first, first]
    assert await other.ask(command) == AlreadyExists()


async def test_a_consulted_id_of_another_category_is_invalid_input_of_the_field_that_names_it(bank: Process) -> None:
    user_id = new_id()
    await bank(register("ada@example.org", user_id))
    complaint = f"{user_id} is the id of a stream of user, not of account"
    assert await bank.ask(request(user_id)) == InvalidInput(path=["from_account_id"], complaint=complaint)
    await bank(ChangeEmail(user_id=user_id, email="b@example.org"))


async def test_consulting_a_decider_of_no_feature_is_a_definition_error(process: Start) -> None:
    park = await process(Domain([Feature(deciders=[visits])]))
    with pytest.raises(DefinitionError, match="Enter consults gate, which no feature of this app contains"):
        await park(enter(new_id()))
