"""The decisions of transfers, the account that a request consults, and the rows that transfers fold into."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest

from bank.accounts.domain import (
    Account,
    AccountClosed,
    AccountEvent,
    AccountFrozen,
    AccountNotFound,
    AccountOpened,
    AccountStatus,
    Deposit,
    TransferReceived,
    TransferReturned,
    TransferSent,
    accounts,
)
from bank.accounts.views import AccountView, account_view
from bank.transfers.domain import (
    CompleteTransfer,
    NoteWithdrawn,
    RefundTransfer,
    RefuseTransfer,
    RequestTransfer,
    SameAccount,
    TransferCannotMove,
    TransferCompleted,
    TransferEvent,
    TransferNotFound,
    TransferRefunded,
    TransferRefused,
    TransferRequested,
    TransferStatus,
    TransferWithdrawn,
    transfers,
)
from bank.transfers.views import TransferView, transfer_view
from bank.users.domain import AlreadyExists
from headwater import Command, Consult
from headwater.domain.context import Seen
from headwater.errors import DefinitionError
from headwater.testing import folded, given, recorded

T, A, B = UUID(int=1), UUID(int=2), UUID(int=3)
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)

OPENED = AccountOpened(account_id=A, owner_id=B, currency="EUR")
REQUESTED = TransferRequested(transfer_id=T, from_account_id=A, to_account_id=B, amount=Decimal("5.00"), currency="EUR")
WITHDRAWN = TransferWithdrawn(transfer_id=T)
COMPLETED = TransferCompleted(transfer_id=T)
REFUSED = TransferRefused(transfer_id=T, reason="INSUFFICIENT_FUNDS")
REFUNDED = TransferRefunded(transfer_id=T, reason="ACCOUNT_NOT_FOUND")

NOTE = NoteWithdrawn(transfer_id=T)
COMPLETE = CompleteTransfer(transfer_id=T)
REFUSE = RefuseTransfer(transfer_id=T, reason="INSUFFICIENT_FUNDS")
REFUND = RefundTransfer(transfer_id=T, reason="ACCOUNT_NOT_FOUND")


def request(source: UUID = A, target: UUID = B) -> RequestTransfer:
    return RequestTransfer(transfer_id=T, from_account_id=source, to_account_id=target, amount=Decimal("5.00"))


# The request ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("since", [[], [AccountFrozen(account_id=A)], [AccountClosed(account_id=A)]])
def test_a_transfer_is_requested_in_the_currency_of_its_source(since: list[AccountEvent]) -> None:
    """The balance and status of the source are checked later, when the money leaves."""
    given(transfers).when(request(), seeing={A: given(accounts, [OPENED, *since])}).then([REQUESTED])


def test_a_transfer_from_an_unknown_account_is_refused() -> None:
    given(transfers).when(request()).refused(AccountNotFound(account_id=A))
    given(transfers).when(request(), seeing={A: given(accounts)}).refused(AccountNotFound(account_id=A))


def test_a_transfer_to_the_same_account_is_refused() -> None:
    given(transfers).when(request(A, A), seeing={A: given(accounts, [OPENED])}).refused(SameAccount())


def test_a_transfer_cannot_be_requested_twice() -> None:
    given(transfers, [REQUESTED]).when(request(), seeing={A: given(accounts, [OPENED])}).refused(AlreadyExists())


def test_only_the_request_consults_an_account() -> None:
    assert transfers.consulted(request()) == [Consult(accounts, A)]
    assert [transfers.consulted(command) for command in (NOTE, COMPLETE, REFUSE, REFUND)] == [()] * 4


def test_a_decision_can_read_only_the_states_that_it_consults() -> None:
    """Holds for `Seen`, and for `seeing` in tests."""
    seen = Seen({("account", A): Account(AccountStatus.OPEN)})
    assert seen.of(accounts, A).status is AccountStatus.OPEN
    with pytest.raises(DefinitionError, match=f"reads account {B}, which `consults` does not name"):
        seen.of(accounts, B)
    with pytest.raises(AssertionError, match="RequestTransfer does not consult all of"):
        given(transfers).when(request(), seeing={B: given(accounts, [OPENED])})
    with pytest.raises(AssertionError, match="Deposit does not consult all of"):
        given(accounts).when(Deposit(account_id=A, amount=Decimal(1)), seeing={B: given(accounts)})


# The transitions ------------------------------------------------------------------------------------------------------

PATHS: dict[TransferStatus, list[TransferEvent]] = {
    TransferStatus.REQUESTED: [REQUESTED],
    TransferStatus.WITHDRAWN: [REQUESTED, WITHDRAWN],
    TransferStatus.COMPLETED: [REQUESTED, WITHDRAWN, COMPLETED],
    TransferStatus.REFUSED: [REQUESTED, REFUSED],
    TransferStatus.REFUNDED: [REQUESTED, WITHDRAWN, REFUNDED],
}
MOVES: list[tuple[Command, TransferEvent, TransferStatus, list[TransferStatus]]] = [
    (NOTE, WITHDRAWN, TransferStatus.WITHDRAWN, [TransferStatus.REQUESTED]),
    (COMPLETE, COMPLETED, TransferStatus.COMPLETED, [TransferStatus.WITHDRAWN]),
    (REFUSE, REFUSED, TransferStatus.REFUSED, [TransferStatus.REQUESTED]),
    (REFUND, REFUNDED, TransferStatus.REFUNDED, [TransferStatus.REQUESTED, TransferStatus.WITHDRAWN]),
]


@pytest.mark.parametrize("status", TransferStatus)
@pytest.mark.parametrize("command, event, to, before", MOVES)
def test_a_transfer_accepts_only_the_next_transition_and_ignores_a_repeated_one(
    command: Command,
    event: TransferEvent,
    to: TransferStatus,
    before: list[TransferStatus],
    status: TransferStatus,
) -> None:
    answer = given(transfers, PATHS[status]).when(command)
    if status in before:
        answer.then([event])
    elif status is to:
        answer.then([])
    else:
        answer.refused(TransferCannotMove(status=status))


@pytest.mark.parametrize("command", [NOTE, COMPLETE, REFUSE, REFUND])
def test_a_transfer_that_was_never_requested_is_not_found(command: Command) -> None:
    given(transfers).when(command).refused(TransferNotFound(transfer_id=T))


def test_a_repeated_refusal_or_refund_does_not_change_the_reason() -> None:
    given(transfers, PATHS[TransferStatus.REFUSED]).when(RefuseTransfer(transfer_id=T, reason="TIMED_OUT")).then([])
    given(transfers, PATHS[TransferStatus.REFUNDED]).when(RefundTransfer(transfer_id=T, reason="TIMED_OUT")).then([])


# The rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", TransferStatus)
def test_a_transfer_is_shown_with_its_status_and_reason(status: TransferStatus) -> None:
    path = [recorded(event, at=NOON + timedelta(minutes=n)) for n, event in enumerate(PATHS[status])]
    assert folded(transfer_view, path) == TransferView(
        transfer_id=T,
        from_account_id=A,
        to_account_id=B,
        amount=Decimal("5.00"),
        currency="EUR",
        status=status,
        reason={TransferStatus.REFUSED: "INSUFFICIENT_FUNDS", TransferStatus.REFUNDED: "ACCOUNT_NOT_FOUND"}.get(status),
        requested_at=NOON,
        updated_at=NOON + timedelta(minutes=len(path) - 1),
    )


def test_money_moved_by_transfers_counts_as_entries_of_the_account() -> None:
    moved: list[AccountEvent] = [
        OPENED,
        TransferReceived(account_id=A, transfer_id=T, amount=Decimal(5), balance=Decimal(5)),
        TransferSent(account_id=A, transfer_id=T, amount=Decimal(3), balance=Decimal(2)),
        TransferReturned(account_id=A, transfer_id=T, amount=Decimal(3), balance=Decimal(5)),
    ]
    assert folded(account_view, [recorded(event, at=NOON) for event in moved]) == AccountView(
        account_id=A,
        owner_id=B,
        currency="EUR",
        status=AccountStatus.OPEN,
        balance=Decimal(5),
        entry_count=3,
        opened_at=NOON,
        updated_at=NOON,
    )
