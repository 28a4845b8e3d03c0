"""The steps of a history, and the Hypothesis strategies that generate histories of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

from hypothesis import strategies as st

from bank.accounts.domain import (
    AccountFrozen,
    AccountOpened,
    AccountUnfrozen,
    CloseAccount,
    Deposit,
    FreezeAccount,
    MoneyDeposited,
    MoneyWithdrawn,
    OpenAccount,
    TransferReceived,
    TransferSent,
    UnfreezeAccount,
    Withdraw,
)
from bank.transfers.domain import RequestTransfer, TransferCompleted, TransferRequested, TransferWithdrawn
from bank.users.domain import ChangeEmail, EmailChanged, RegisterUser, UserRegistered
from headwater import Command, Event

USERS = [UUID(int=n) for n in (1, 2, 3)]
ACCOUNTS = [UUID(int=n) for n in (11, 12, 13, 14)]
TRANSFERS = [UUID(int=n) for n in range(21, 29)]


@dataclass(frozen=True)
class Send:
    """Send commands concurrently.

    twice: send each to both nodes under one command id. seen: wait until the read models show them.
    """

    commands: Sequence[Command]
    twice: bool = False
    seen: bool = False


@dataclass(frozen=True)
class Again:
    """Send an earlier command again under its id. back: counted from the last command, which is 0."""

    back: int


@dataclass(frozen=True)
class Start:
    """Start a worker. apart: as a process of its own, whose folds have no bugs."""

    apart: bool = False


@dataclass(frozen=True)
class Leave:
    """Shut the oldest worker down in order."""


@dataclass(frozen=True)
class Kill:
    """Kill the oldest worker without a shutdown."""


@dataclass(frozen=True)
class Faint:
    """Stop the lease renewal of the oldest worker; its projectors go on without their leases."""


@dataclass(frozen=True)
class KillMidway:
    """Kill all workers while one has moved a checkpoint, or swaps a rebuild in, and has not committed."""

    commands: Sequence[Command]


@dataclass(frozen=True)
class KillIssuing:
    """Kill all workers while the append that delivers or returns a transfer's money has an unknown outcome."""

    transfer: Command


@dataclass(frozen=True)
class Cut:
    """Cut the database connections of all workers, which go on running."""


@dataclass(frozen=True)
class Poison:
    """Make the fold of an event type fail for a key from now on."""

    view: str
    kind: type[Event]
    key: UUID


@dataclass(frozen=True)
class Heal:
    """Fix all bugs in folds."""


@dataclass(frozen=True)
class TryAgain:
    """Retry all dead letters, as `headwater dead-letters retry` does."""


@dataclass(frozen=True)
class Discard:
    """Discard a read model's dead letters twice, as `headwater dead-letters discard` does, while no worker runs."""

    view: str


@dataclass(frozen=True)
class Rebuild:
    """Force a rebuild, as `headwater rebuild` does; the workers continue it, if there are any."""

    view: str


Step: TypeAlias = (
    Send
    | Again
    | Start
    | Leave
    | Kill
    | Faint
    | KillMidway
    | KillIssuing
    | Cut
    | Poison
    | Heal
    | TryAgain
    | Discard
    | Rebuild
)


def often(*weighted: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """Return a strategy that draws each strategy with its weight.

    `st.one_of` would count a repeated strategy once, and flatten nested ones.
    """
    return st.sampled_from([strategy for weight, strategy in weighted for _ in range(weight)]).flatmap(
        lambda strategy: strategy
    )


user, account, transfer = st.sampled_from(USERS), st.sampled_from(ACCOUNTS), st.sampled_from(TRANSFERS)
email = st.sampled_from(["a@bank.example", "A@bank.example", "b@bank.example", "c@bank.example"])
amount = st.sampled_from([Decimal("0.01"), Decimal("5.00"), Decimal("19.99"), Decimal("100.00")])

FIRST: list[Command] = [
    *(RegisterUser(user_id=key, email=f"{key.int}@bank.example", name="Ada") for key in USERS[:2]),
    *(OpenAccount(account_id=key, owner_id=USERS[0], currency="EUR") for key in ACCOUNTS[:3]),
]
PAID_IN: list[Command] = [Deposit(account_id=key, amount=Decimal("100.00")) for key in ACCOUNTS[:3]]
FROZEN_AND_NOT: list[Command] = [kind(account_id=ACCOUNTS[0]) for kind in (FreezeAccount, UnfreezeAccount)]
BEGUN: list[Step] = [Send(FIRST), Send(PAID_IN), Send(FROZEN_AND_NOT[:1]), Send(FROZEN_AND_NOT[1:], seen=True)]
"""Sent one after another: commands sent concurrently to two nodes may be decided in any order, and refused."""

MOVED: list[Command] = [
    RequestTransfer(transfer_id=key, from_account_id=source, to_account_id=target, amount=Decimal("5.00"))
    # The money of the last one is returned, since its target account does not exist at first.
    for key, source, target in zip(TRANSFERS, ACCOUNTS[:3], [ACCOUNTS[1], ACCOUNTS[0], ACCOUNTS[3]], strict=False)
]

request = st.builds(
    RequestTransfer, transfer_id=transfer, from_account_id=account, to_account_id=account, amount=amount
)
command = often(
    (1, st.builds(RegisterUser, user_id=user, email=email, name=st.just("Ada"))),
    (1, st.builds(ChangeEmail, user_id=user, email=email)),
    (1, st.builds(OpenAccount, account_id=account, owner_id=user, currency=st.just("EUR"))),
    (3, st.builds(Deposit, account_id=account, amount=amount)),
    (2, st.builds(Withdraw, account_id=account, amount=amount)),
    (3, request),
    (1, st.builds(FreezeAccount, account_id=account)),
    (2, st.builds(UnfreezeAccount, account_id=account)),
    (1, st.builds(CloseAccount, account_id=account)),
)
commands = st.lists(command, min_size=4, max_size=15)

poison = st.one_of(
    st.builds(Poison, st.just("User"), st.sampled_from([UserRegistered, EmailChanged]), user),
    *[
        st.builds(Poison, st.just("Account"), st.sampled_from(kinds), account)
        for kinds in ([MoneyDeposited, MoneyWithdrawn, AccountFrozen], [TransferSent, TransferReceived])
    ],
    st.builds(Poison, st.just("Movable"), st.sampled_from([AccountFrozen, AccountUnfrozen]), account),
    st.builds(Poison, st.just("Owner"), st.just(AccountOpened), user),
    st.builds(
        Poison,
        st.just("Transfer"),
        st.sampled_from([TransferRequested, TransferWithdrawn, TransferCompleted]),
        st.sampled_from(TRANSFERS[:4]),
    ),
)
step = often(
    (5, st.builds(Send, commands, st.booleans(), st.booleans())),
    (1, st.builds(Again, st.integers(0, 40))),
    (2, st.just(Start())),
    (1, st.just(Start(apart=True))),
    (1, st.just(Leave())),
    (2, st.just(Kill())),
    (1, st.just(Faint())),
    (1, st.builds(KillMidway, commands.map(lambda some: [*some, *PAID_IN]))),
    (1, st.builds(KillIssuing, request)),
    (1, st.just(Cut())),
    (2, poison),
    (1, st.just(Heal())),
    (1, st.just(TryAgain())),
    # Not of users or transfers: without the first event of a row, the fold of later ones would always fail.
    (1, st.builds(Discard, st.sampled_from(["Account", "Owner"]))),
    (2, st.builds(Rebuild, st.sampled_from(["User", "Account", "Movable", "Owner", "Transfer"]))),
)
at_first = st.one_of(
    st.builds(Poison, st.just("User"), st.just(UserRegistered), st.sampled_from(USERS[:2])),
    st.builds(Poison, st.just("Account"), st.just(MoneyDeposited), st.sampled_from(ACCOUNTS[:3])),
    st.builds(Poison, st.sampled_from(["Account", "Movable"]), st.just(AccountFrozen), st.just(ACCOUNTS[0])),
    st.builds(Poison, st.just("Transfer"), st.just(TransferWithdrawn), st.sampled_from(TRANSFERS[:2])),
)
histories = st.builds(
    lambda bug, steps: [Start(), bug, *BEGUN, Send(MOVED), *steps],
    at_first,
    st.lists(step, min_size=6, max_size=14),
)
