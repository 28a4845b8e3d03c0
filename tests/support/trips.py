"""A small domain with claims: trips that take seats, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from headwater import Command, Decider, Event, Feature, Refusal, Release, Take
from headwater.domain.feature import Domain


class Full(Refusal):
    """There is no room."""


class Book(Command):
    """Take seats one after another; each replaces the one before."""

    trip_id: UUID
    seats: list[str]


class SeatTaken(Event):
    trip_id: UUID
    seat: str


def decide(command: Book, seat: str) -> list[SeatTaken] | Full:
    if not command.seats:
        return Full()
    return [SeatTaken(trip_id=command.trip_id, seat=seat) for seat in command.seats]


def evolve(seat: str, event: SeatTaken) -> str:
    return event.seat


def claims(seat: str, event: SeatTaken) -> Sequence[Take | Release]:
    take = Take("seat", event.seat, Full())
    return (Release("seat", seat), take) if seat else (take,)


TRIPS = Domain([Feature(deciders=[Decider("trip", "trip_id", "", decide, evolve, claims)])])
