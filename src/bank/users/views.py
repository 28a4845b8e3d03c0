"""Users: the read model that clients query, and its fold."""

from __future__ import annotations

from datetime import datetime
from typing import assert_never
from uuid import UUID

from bank.users.domain import EmailChanged, UserEvent, UserRegistered
from headwater import ReadModel, Recorded, View, replace


class UserView(ReadModel, name="User", key="user_id", indexes=["email"]):
    """A user of the bank."""

    user_id: UUID
    email: str
    name: str
    registered_at: datetime


def fold(row: UserView | None, event: Recorded[UserEvent]) -> UserView | None:
    match event.data:
        case UserRegistered() as e:
            return UserView(user_id=e.user_id, email=e.email, name=e.name, registered_at=event.recorded_at)
        case EmailChanged() as e:
            assert row is not None  # an address changes after a registration
            return replace(row, email=e.email)
        case _:
            assert_never(event.data)


user_view = View(UserView, fold)
