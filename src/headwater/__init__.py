"""Headwater: event sourcing for Python on PostgreSQL, served live over GraphQL."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headwater.decider import Decider, Release, Seen, Take
from headwater.errors import HeadwaterError, PublicError
from headwater.failure import Park, Retry, Stop
from headwater.feature import Feature
from headwater.messages import Command, Event, Exact, Recorded, Refused
from headwater.reactor import Reactor
from headwater.saga import After, Cancel, Confirmed, Do, Done, Refusal, Saga, TimedOut, Undo
from headwater.schedule import Schedule
from headwater.upcasters import Upcaster
from headwater.view import Link, ReadModel, View

if TYPE_CHECKING:
    from headwater.app import App
    from headwater.console import Example

__all__ = [
    "After",
    "App",
    "Cancel",
    "Command",
    "Confirmed",
    "Decider",
    "Do",
    "Done",
    "Event",
    "Exact",
    "Example",
    "Feature",
    "HeadwaterError",
    "Link",
    "Park",
    "PublicError",
    "Reactor",
    "ReadModel",
    "Recorded",
    "Refusal",
    "Refused",
    "Release",
    "Retry",
    "Saga",
    "Schedule",
    "Seen",
    "Stop",
    "Take",
    "TimedOut",
    "Undo",
    "Upcaster",
    "View",
]

# These bring the database and the web with them: a domain that imports Command must stay free of both.
_HEAVY = {"App": "headwater.app", "Example": "headwater.console"}


def __getattr__(name: str) -> Any:
    if name not in _HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HEAVY[name]), name)
