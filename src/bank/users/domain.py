"""Users: the commands, refusals, events, state and decider. Read it from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, TypeAlias
from unicodedata import category, normalize
from uuid import UUID

from msgspec import Meta

from headwater import Command, Decider, Event, InvalidInput, Refusal, Release, Take

Email: TypeAlias = Annotated[
    str, Meta(min_length=3, max_length=254, pattern=r"^[^@\s]+@[^@\s]+\Z", examples=["ada@example.org"])
]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"\S", examples=["Ada Lovelace"])]


class EmailTaken(Refusal):
    """Another user has this e-mail address."""

    email: str


class UserNotFound(Refusal):
    """There is no such user."""

    user_id: UUID


class AlreadyExists(Refusal):
    """There already is something with this id."""


class RegisterUser(Command, creates=True):
    """Register a user under an e-mail address that no other user has."""

    user_id: UUID
    email: Email
    name: Name


class ChangeEmail(Command):
    """Give a user another e-mail address that no other user has."""

    user_id: UUID
    email: Email


class UserRegistered(Event):
    user_id: UUID
    email: str
    name: str


class EmailChanged(Event):
    user_id: UUID
    email: str


UserEvent: TypeAlias = UserRegistered | EmailChanged


@dataclass(frozen=True)
class User:
    """The state that a decision about a user needs. email: None before the user is registered."""

    email: str | None = None


def register(command: RegisterUser, user: User) -> UserRegistered | EmailTaken | AlreadyExists | InvalidInput:
    if user.email is not None:
        return AlreadyExists()
    if not any(map(_is_visible, command.name)):
        return InvalidInput(path=["name"], complaint="Expected a name that can be seen")
    return UserRegistered(user_id=command.user_id, email=command.email, name=command.name)


def change_email(command: ChangeEmail, user: User) -> EmailChanged | UserNotFound | EmailTaken | None:
    if user.email is None:
        return UserNotFound(user_id=command.user_id)
    if command.email == user.email:
        return None
    return EmailChanged(user_id=command.user_id, email=command.email)


def evolve(user: User, event: UserEvent) -> User:
    return replace(user, email=event.email)


def claims(user: User, event: UserEvent) -> Sequence[Take | Release]:
    """Return the claims that keep an e-mail address to one user, in whatever case or Unicode form it is written."""
    old, new = _normalized(user.email or ""), _normalized(event.email)
    if old == new:
        return ()
    take = Take("email", new, otherwise=EmailTaken(email=event.email))
    return (Release("email", old), take) if old else (take,)


def _normalized(email: str) -> str:
    """Return the address casefolded and in NFKC. It is normalized twice, since casefolding can decompose characters."""
    return normalize("NFKC", normalize("NFKC", email).casefold())


def _is_visible(character: str) -> bool:
    """True unless the character is a space, or a control or format character such as the zero-width space."""
    return category(character) not in ("Zs", "Zl", "Zp", "Cc", "Cf")


users = Decider("user", key="user_id", initial=User(), decide=[register, change_email], evolve=evolve, claims=claims)
