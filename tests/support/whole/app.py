"""The bank with two more read models, of which one deletes and recreates its rows. Each fold can be given a bug."""

from __future__ import annotations

from datetime import datetime
from functools import wraps
from typing import Any, assert_never
from uuid import UUID

from bank.accounts.domain import AccountClosed, AccountFrozen, AccountOpened, AccountUnfrozen
from bank.accounts.feature import accounts
from bank.accounts.views import account_view
from bank.transfers.feature import transfers
from bank.transfers.views import transfer_view
from bank.users.domain import UserRegistered
from bank.users.feature import users
from bank.users.views import user_view
from headwater import App, Event, Feature, Park, ReadModel, Recorded, Retry, Stop, View
from headwater.domain.failure_policy import OnFailure
from headwater.domain.row_route import RowRoutes

POISON: set[tuple[str, type[Event], UUID]] = set()
"""The folds that fail now: the read model's name, the event type and the row's key of each."""


class Movable(ReadModel, key="account_id"):
    """An account that is open and not frozen; the row is deleted while it is not."""

    account_id: UUID
    since: datetime


def fold_movable(
    row: Movable | None, event: Recorded[AccountOpened | AccountFrozen | AccountUnfrozen | AccountClosed]
) -> Movable | None:
    match event.data:
        case AccountOpened() | AccountUnfrozen():
            return Movable(account_id=event.data.account_id, since=event.recorded_at)
        case AccountFrozen() | AccountClosed():
            return None
        case _:
            assert_never(event.data)


class Owner(ReadModel, key="owner_id"):
    """A user with the number of accounts opened; it folds streams of two categories."""

    owner_id: UUID
    name: str | None
    opened: int


def fold_owner(row: Owner | None, event: Recorded[UserRegistered | AccountOpened]) -> Owner:
    name, opened = (row.name, row.opened) if row else (None, 0)
    match event.data:
        case UserRegistered():
            return Owner(owner_id=event.data.user_id, name=event.data.name, opened=opened)
        case AccountOpened():
            return Owner(owner_id=event.data.owner_id, name=name, opened=opened + 1)
        case _:
            assert_never(event.data)


def owner_of(event: UserRegistered | AccountOpened) -> UUID:
    return event.user_id if isinstance(event, UserRegistered) else event.owner_id


def route_to_owner(event: Recorded[UserRegistered | AccountOpened]) -> UUID:
    return owner_of(event.data)


movable_view = View(Movable, fold_movable)
owner_view = View(Owner, fold_owner, route=route_to_owner, history=True)
VIEWS: list[View[Any]] = [user_view, account_view, movable_view, owner_view, transfer_view]


def poisonable(view: View[Any], on_failure: OnFailure) -> View[Any]:
    """Return the view with a fold that fails for the entries of POISON."""

    routes = RowRoutes(view)

    @wraps(view.fold)
    def fold(row: Any, event: Recorded[Any]) -> Any:
        if any((view.name, type(event.data), key) in POISON for key in routes.keys(event)):
            raise ZeroDivisionError("a bug in the fold")
        return view.fold(row, event)

    return View(view.model, fold, view.route, on_failure, view.history)


app = App(
    [
        Feature(users.deciders, [poisonable(user_view, Park())], users.upcasters),
        Feature(
            accounts.deciders,
            [
                poisonable(account_view, Retry(times=1, first=0.02, then=Park())),
                poisonable(movable_view, Retry(times=1, first=0.02, then=Stop())),
                poisonable(owner_view, Park()),
            ],
            accounts.upcasters,
        ),
        Feature(
            transfers.deciders,
            [poisonable(transfer_view, Retry(times=1, first=0.02, then=Park()))],
            sagas=transfers.sagas,
        ),
    ]
)
