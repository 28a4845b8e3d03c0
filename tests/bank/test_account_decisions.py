"""The decisions of accounts and users: given events, when a command, then events or a refusal."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from bank.accounts.domain import (
    Account,
    AccountClosed,
    AccountEvent,
    AccountFrozen,
    AccountNotEmpty,
    AccountNotFound,
    AccountNotOpen,
    AccountOpened,
    AccountStatus,
    AccountUnfrozen,
    CloseAccount,
    CurrencyMismatch,
    Deposit,
    FreezeAccount,
    InsufficientFunds,
    MoneyDeposited,
    MoneyWithdrawn,
    Movement,
    OpenAccount,
    ReceiveTransfer,
    ReturnTransfer,
    SendTransfer,
    SettleTransfer,
    TransferReceived,
    TransferReturned,
    TransferSent,
    TransferSettled,
    UnfreezeAccount,
    Withdraw,
    accounts,
)
from bank.accounts.invariants import balance as balance_invariant
from bank.transfers.domain import (
    CompleteTransfer,
    NoteWithdrawn,
    RefundTransfer,
    RefuseTransfer,
    RequestTransfer,
    SameAccount,
    TransferCannotMove,
    TransferNotFound,
    transfers,
)
from bank.users.domain import (
    AlreadyExists,
    ChangeEmail,
    EmailChanged,
    EmailTaken,
    RegisterUser,
    User,
    UserNotFound,
    UserRegistered,
    claims,
    users,
)
from headwater import Command, Event, Refusal, Release, Take
from headwater.domain.messages import InvalidInput
from headwater.domain.serialization import StateCodec
from headwater.testing import given, recorded, violations

A, B, T = UUID(int=1), UUID(int=2), UUID(int=3)

OPENED = AccountOpened(account_id=A, owner_id=B, currency="EUR")
FROZEN = AccountFrozen(account_id=A)
CLOSED = AccountClosed(account_id=A)
SETTLE = SettleTransfer(account_id=A, transfer_id=T)
SETTLED = TransferSettled(account_id=A, transfer_id=T)
REGISTERED = UserRegistered(user_id=A, email="ada@example.org", name="Ada")


def deposited(amount: str, balance: str) -> MoneyDeposited:
    return MoneyDeposited(account_id=A, amount=Decimal(amount), balance=Decimal(balance))


def withdrawn(amount: str, balance: str) -> MoneyWithdrawn:
    return MoneyWithdrawn(account_id=A, amount=Decimal(amount), balance=Decimal(balance))


def deposit(amount: str) -> Deposit:
    return Deposit(account_id=A, amount=Decimal(amount))


def withdraw(amount: str) -> Withdraw:
    return Withdraw(account_id=A, amount=Decimal(amount))


def send(amount: str) -> SendTransfer:
    return SendTransfer(account_id=A, transfer_id=T, amount=Decimal(amount))


def receive(amount: str, currency: str = "EUR") -> ReceiveTransfer:
    return ReceiveTransfer(account_id=A, transfer_id=T, amount=Decimal(amount), currency=currency)


def give_back(amount: str) -> ReturnTransfer:
    return ReturnTransfer(account_id=A, transfer_id=T, amount=Decimal(amount))


def sent(amount: str, balance: str, *, transfer: UUID = T) -> TransferSent:
    return TransferSent(account_id=A, transfer_id=transfer, amount=Decimal(amount), balance=Decimal(balance))


def received(amount: str, balance: str) -> TransferReceived:
    return TransferReceived(account_id=A, transfer_id=T, amount=Decimal(amount), balance=Decimal(balance))


def given_back(amount: str, balance: str) -> TransferReturned:
    return TransferReturned(account_id=A, transfer_id=T, amount=Decimal(amount), balance=Decimal(balance))


# Accounts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "history, command, events",
    [
        ([], OpenAccount(account_id=A, owner_id=B, currency="EUR"), [OPENED]),
        ([OPENED], deposit("0.10"), [deposited("0.10", "0.10")]),
        ([OPENED, deposited("0.10", "0.10")], deposit("0.20"), [deposited("0.20", "0.30")]),
        ([OPENED, deposited("5", "5")], withdraw("2.5"), [withdrawn("2.5", "2.5")]),
        ([OPENED, deposited("5", "5")], withdraw("5"), [withdrawn("5", "0")]),
        ([OPENED, FROZEN, AccountUnfrozen(account_id=A)], deposit("1"), [deposited("1", "1")]),
        ([OPENED], FreezeAccount(account_id=A), [FROZEN]),
        ([OPENED, FROZEN], UnfreezeAccount(account_id=A), [AccountUnfrozen(account_id=A)]),
        ([OPENED], UnfreezeAccount(account_id=A), []),
        ([OPENED], CloseAccount(account_id=A), [CLOSED]),
        ([OPENED, deposited("5", "5"), withdrawn("5", "0.00")], CloseAccount(account_id=A), [CLOSED]),
        ([OPENED, deposited("5", "5")], send("5"), [sent("5", "0")]),
        ([OPENED, deposited("5", "5"), sent("3", "2")], receive("0.5"), [received("0.5", "2.5")]),
        ([OPENED, received("5", "5"), sent("3", "2")], give_back("3"), [given_back("3", "5")]),
        ([OPENED, received("5", "5"), sent("3", "2"), FROZEN], give_back("3"), [given_back("3", "5")]),
        ([OPENED, received("5", "5"), sent("5", "0"), given_back("5", "5")], withdraw("1"), [withdrawn("1", "4")]),
    ],
)
def test_an_account_in_a_suitable_state_accepts_a_command(
    history: list[AccountEvent], command: Command, events: list[AccountEvent]
) -> None:
    given(accounts, history).when(command).then(events)


MOVES: list[Command] = [
    deposit("1"),
    withdraw("1"),
    FreezeAccount(account_id=A),
    UnfreezeAccount(account_id=A),
    CloseAccount(account_id=A),
    send("1"),
    receive("1"),
    give_back("1"),
    SETTLE,
]


@pytest.mark.parametrize("command", MOVES)
def test_an_account_that_was_never_opened_is_not_found(command: Command) -> None:
    given(accounts).when(command).refused(AccountNotFound(account_id=A))


@pytest.mark.parametrize("command", [move for move in MOVES if not isinstance(move, ReturnTransfer | SettleTransfer)])
def test_a_closed_account_accepts_only_returns_and_settlements(command: Command) -> None:
    given(accounts, [OPENED, CLOSED]).when(command).refused(AccountNotOpen(status=AccountStatus.CLOSED))


WHILE_FROZEN = UnfreezeAccount | ReturnTransfer | SettleTransfer


@pytest.mark.parametrize("command", [move for move in MOVES if not isinstance(move, WHILE_FROZEN)])
def test_a_frozen_account_accepts_only_unfreezing_returns_and_settlements(command: Command) -> None:
    given(accounts, [OPENED, FROZEN]).when(command).refused(AccountNotOpen(status=AccountStatus.FROZEN))


@pytest.mark.parametrize("history", [[OPENED], [OPENED, FROZEN], [OPENED, CLOSED]])
def test_an_account_cannot_be_opened_twice(history: list[AccountEvent]) -> None:
    again = OpenAccount(account_id=A, owner_id=B, currency="USD")
    given(accounts, history).when(again).refused(AlreadyExists())


def test_a_withdrawal_or_transfer_beyond_the_balance_is_refused() -> None:
    given(accounts, [OPENED]).when(withdraw("0.01")).refused(InsufficientFunds(balance=Decimal(0)))
    rich = given(accounts, [OPENED, deposited("5", "5")])
    for taken in (withdraw("5.01"), send("5.01")):
        rich.when(taken).refused(InsufficientFunds(balance=Decimal(5)))


def test_a_transfer_in_another_currency_is_refused() -> None:
    given(accounts, [OPENED]).when(receive("1", "USD")).refused(CurrencyMismatch(expected="EUR", actual="USD"))


def test_an_account_with_a_balance_cannot_be_closed() -> None:
    rich = given(accounts, [OPENED, deposited("0.01", "0.01")])
    rich.when(CloseAccount(account_id=A)).refused(AccountNotEmpty(balance=Decimal("0.01")))


SENT = [OPENED, deposited("5", "5"), sent("5", "0")]


@pytest.mark.parametrize("since", [[], [FROZEN, AccountUnfrozen(account_id=A)]])
def test_an_account_cannot_be_closed_while_a_transfer_holds_its_money(since: list[AccountEvent]) -> None:
    """Money in transit counts towards the balance."""
    close = CloseAccount(account_id=A)
    given(accounts, [*SENT, *since]).when(close).refused(AccountNotEmpty(balance=Decimal(5)))
    given(accounts, [*SENT, received("3", "3"), *since]).when(close).refused(AccountNotEmpty(balance=Decimal(8)))
    another = sent("1", "2", transfer=B)
    given(accounts, [*SENT, received("3", "3"), another]).when(close).refused(AccountNotEmpty(balance=Decimal(8)))


def test_an_account_can_be_closed_after_its_transfer_was_settled_or_returned_and_withdrawn() -> None:
    given(accounts, [*SENT, SETTLED]).when(CloseAccount(account_id=A)).then([CLOSED])
    back = [given_back("5", "5"), withdrawn("5", "0")]
    given(accounts, [*SENT, *back]).when(CloseAccount(account_id=A)).then([CLOSED])


@pytest.mark.parametrize("since", [[], [FROZEN]])
def test_a_transfer_is_settled_once_on_an_open_or_frozen_account(since: list[AccountEvent]) -> None:
    given(accounts, [*SENT, *since]).when(SETTLE).then([SETTLED])
    given(accounts, [*SENT, SETTLED, *since]).when(SETTLE).then([])
    given(accounts, [*SENT, given_back("5", "5"), *since]).when(SETTLE).then([])


def test_a_snapshot_keeps_the_money_held_for_transfers() -> None:
    account, codec = given(accounts, SENT).state, StateCodec(Account)
    assert account.held == {T: Decimal(5)}
    assert codec.decode(codec.encode(account)) == account


AMOUNTS = st.decimals(min_value="0.01", max_value=100, places=2)
COMMANDS = st.one_of(
    st.builds(OpenAccount, account_id=st.just(A), owner_id=st.just(B), currency=st.just("EUR")),
    st.builds(Deposit, account_id=st.just(A), amount=AMOUNTS),
    st.builds(Withdraw, account_id=st.just(A), amount=AMOUNTS),
    *(st.just(kind(account_id=A)) for kind in (FreezeAccount, UnfreezeAccount, CloseAccount)),
    *(
        st.builds(kind, account_id=st.just(A), transfer_id=st.just(T), amount=AMOUNTS)
        for kind in (SendTransfer, ReturnTransfer)
    ),
    st.builds(SendTransfer, account_id=st.just(A), transfer_id=st.uuids(), amount=AMOUNTS),
    st.just(SETTLE),
    st.builds(
        ReceiveTransfer,
        account_id=st.just(A),
        transfer_id=st.just(T),
        amount=AMOUNTS,
        currency=st.sampled_from(["EUR", "USD"]),
    ),
)


@settings(max_examples=100)
@examples(st.lists(COMMANDS, max_size=30))
def test_the_balance_is_the_sum_of_the_movements_after_any_commands(commands: list[Command]) -> None:
    history: list[Event] = []
    for command in commands:  # `when` fails on an undeclared refusal, and on an event that `evolve` does not take
        history.extend(given(accounts, history).when(command).events)
    moved = [event for event in history if isinstance(event, Movement)]
    balance = Decimal(0)
    for event in moved:
        balance += -event.amount if isinstance(event, MoneyWithdrawn | TransferSent) else event.amount
        assert event.balance == balance >= 0
    assert given(accounts, history).state.balance == balance
    assert violations(balance_invariant, [recorded(event, stream_id=A) for event in history]) == []


# Users ----------------------------------------------------------------------------------------------------------------


def test_registering_a_user_records_the_address_and_name() -> None:
    given(users).when(RegisterUser(user_id=A, email="ada@example.org", name="Ada")).then([REGISTERED])


def test_a_user_cannot_register_twice() -> None:
    again = RegisterUser(user_id=A, email="other@example.org", name="Ada")
    given(users, [REGISTERED]).when(again).refused(AlreadyExists())


def test_a_changed_address_is_recorded_once() -> None:
    changed = EmailChanged(user_id=A, email="lovelace@example.org")
    given(users, [REGISTERED]).when(ChangeEmail(user_id=A, email="lovelace@example.org")).then([changed])
    given(users, [REGISTERED, changed]).when(ChangeEmail(user_id=A, email="lovelace@example.org")).then([])
    given(users, [REGISTERED]).when(ChangeEmail(user_id=A, email="ada@example.org")).then([])


def test_an_unknown_user_cannot_change_an_address() -> None:
    given(users).when(ChangeEmail(user_id=B, email="b@example.org")).refused(UserNotFound(user_id=B))


def test_the_claim_of_an_address_ignores_case() -> None:
    (take,) = claims(User(), UserRegistered(user_id=A, email="Straße@Example.org", name="Ada"))
    assert isinstance(take, Take)
    assert (take.name, take.value) == ("email", "strasse@example.org")
    assert isinstance(take.otherwise, EmailTaken)
    assert take.otherwise.facts == {"email": "Straße@Example.org"}


@pytest.mark.parametrize(
    "one, other",
    [
        ("jos\u00e9@example.org", "jose\u0301@example.org"),  # one character, or a letter and its accent
        ("\uff41da@example.org", "ada@example.org"),  # a wide letter
        ("\ufb01n@example.org", "FIN@example.org"),  # a ligature
    ],
)
def test_the_claim_of_an_address_ignores_unicode_composition(one: str, other: str) -> None:
    taken = [claims(User(), UserRegistered(user_id=A, email=email, name="Ada"))[0].value for email in (one, other)]
    assert taken[0] == taken[1]
    assert claims(User(one), EmailChanged(user_id=A, email=other)) == ()


@pytest.mark.parametrize("name", ["\u200b", "\u2060 \ufeff", "\u202e\n"])
def test_a_name_of_invisible_characters_is_refused(name: str) -> None:
    given(users).when(RegisterUser(user_id=A, email="ada@example.org", name=name)).refused(
        InvalidInput(path=["name"], complaint="Expected a name that can be seen")
    )


def test_a_name_may_contain_invisible_characters_among_others() -> None:
    family = "\U0001f469\u200d\U0001f467"  # two people, joined
    registered = UserRegistered(user_id=A, email="ada@example.org", name=family)
    given(users).when(RegisterUser(user_id=A, email="ada@example.org", name=family)).then([registered])


def test_a_changed_address_releases_the_claim_of_the_old_one() -> None:
    release, take = claims(User("Ada@Example.org"), EmailChanged(user_id=A, email="b@example.org"))
    assert release == Release("email", "ada@example.org")
    assert isinstance(take, Take)
    assert take.value == "b@example.org"
    assert claims(User("Ada@Example.org"), EmailChanged(user_id=A, email="ada@example.org")) == ()


# Declared refusals ----------------------------------------------------------------------------------------------------

REFUSALS: list[tuple[type[Command], set[type[Refusal]]]] = [
    (RegisterUser, {EmailTaken, AlreadyExists}),
    (ChangeEmail, {UserNotFound, EmailTaken}),
    (OpenAccount, {AlreadyExists}),
    (Deposit, {AccountNotFound, AccountNotOpen}),
    (Withdraw, {AccountNotFound, AccountNotOpen, InsufficientFunds}),
    (FreezeAccount, {AccountNotFound, AccountNotOpen}),
    (UnfreezeAccount, {AccountNotFound, AccountNotOpen}),
    (CloseAccount, {AccountNotFound, AccountNotOpen, AccountNotEmpty}),
    (SendTransfer, {AccountNotFound, AccountNotOpen, InsufficientFunds}),
    (ReceiveTransfer, {AccountNotFound, AccountNotOpen, CurrencyMismatch}),
    (ReturnTransfer, {AccountNotFound}),
    (SettleTransfer, {AccountNotFound}),
    (RequestTransfer, {AlreadyExists, SameAccount, AccountNotFound}),
    (NoteWithdrawn, {TransferNotFound, TransferCannotMove}),
    (CompleteTransfer, {TransferNotFound, TransferCannotMove}),
    (RefuseTransfer, {TransferNotFound, TransferCannotMove}),
    (RefundTransfer, {TransferNotFound, TransferCannotMove}),
]


@pytest.mark.parametrize("command, refusals", REFUSALS)
def test_a_command_declares_its_refusals(command: type[Command], refusals: set[type[Refusal]]) -> None:
    (decider,) = (each for each in (accounts, users, transfers) if command in each.commands)
    assert set(decider.decide_of[command].own_refusals) == refusals


def test_every_command_is_in_the_table_above() -> None:
    assert {command for command, _ in REFUSALS} == {*accounts.commands, *users.commands, *transfers.commands}


def test_commands_that_only_the_saga_issues_are_internal() -> None:
    assert {command for command, _ in REFUSALS if command.__declared__.internal} == {
        SendTransfer,
        ReceiveTransfer,
        ReturnTransfer,
        SettleTransfer,
        NoteWithdrawn,
        CompleteTransfer,
        RefuseTransfer,
        RefundTransfer,
    }
