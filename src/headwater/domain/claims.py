"""Claims: values that are unique among all streams, such as e-mail addresses."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.domain.messages import InvalidInput, Refusal
from headwater.domain.refusals import CommandRefused

LARGEST_CLAIM = 2500
"""The most bytes that a claim's name and value have together. PostgreSQL's index holds 2,704 with its overhead.
PostgreSQL compresses values, so that some longer ones would fit; but a limit that depends on the value could not be
explained to a user."""


@dataclass(frozen=True)
class Take:
    """Claim `value` for the stream, unique among the values of `name`. If another has it, refuse with `otherwise`.

        def claims(user: User, event: UserRegistered) -> list[Take]:
            return [Take("email", event.email, otherwise=EmailTaken(email=event.email))]

    The annotation of the decide function names the class of `otherwise`, as it names the refusals that the function
    returns itself. A command whose claim is larger than `LARGEST_CLAIM` is refused with `InvalidInput`. Its `path` is
    empty, since the field that the value comes from is not known here.
    """

    name: str
    value: str
    otherwise: Refusal

    def __post_init__(self) -> None:
        size = len(f"{self.name}{self.value}".encode(errors="surrogatepass"))
        if size > LARGEST_CLAIM:
            complaint = (
                f"Expected at most {LARGEST_CLAIM} bytes in the claim {self.name!r}, its name included, not {size}"
            )
            raise CommandRefused(InvalidInput(path=[], complaint=complaint))


@dataclass(frozen=True)
class Release:
    """Give up the claim on `value` of `name`, if the stream holds it.

        Release("email", user.email)

    Another stream can then take the value.
    """

    name: str
    value: str
