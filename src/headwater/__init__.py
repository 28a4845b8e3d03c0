"""Headwater: event sourcing for Python on PostgreSQL, served live over GraphQL."""

from importlib import import_module
from typing import TYPE_CHECKING

from headwater.domain.claims import Release, Take
from headwater.domain.class_keywords import replace
from headwater.domain.context import Consult, Context, Seen
from headwater.domain.decider import Decider
from headwater.domain.failure_policy import Park, Retry, Stop
from headwater.domain.feature import Feature
from headwater.domain.invariant import Invariant, Violation
from headwater.domain.messages import (
    Command,
    Event,
    Exact,
    InvalidField,
    InvalidInput,
    Recorded,
    Refusal,
    VersionConflict,
)
from headwater.domain.projection import Projection
from headwater.domain.reactor import Reactor
from headwater.domain.read_model import Link, ReadModel, View
from headwater.domain.saga import After, Cancel, Confirmed, Do, Done, Refused, Saga, TimedOut, Undo
from headwater.domain.schedule import Schedule
from headwater.domain.seed import Seed
from headwater.domain.upcasting import Upcaster
from headwater.domain.value import Value
from headwater.errors import DefinitionError, FloatForMoney, HeadwaterError, ImpureFunction, PublicError

if TYPE_CHECKING:
    from headwater.app import App
    from headwater.commands.dispatcher import Accepted
    from headwater.config import Settings
    from headwater.graphql.explorer.examples import Example
    from headwater.live.watcher import ResetReason
    from headwater.server.app_under_test import AppUnderTest, GraphQLFailed
    from headwater.server.running import Changes, Page, RunningApp

__all__ = [
    "Accepted",
    "After",
    "App",
    "AppUnderTest",
    "Cancel",
    "Changes",
    "Command",
    "Confirmed",
    "Consult",
    "Context",
    "Decider",
    "DefinitionError",
    "Do",
    "Done",
    "Event",
    "Exact",
    "Example",
    "Feature",
    "FloatForMoney",
    "GraphQLFailed",
    "HeadwaterError",
    "ImpureFunction",
    "InvalidField",
    "InvalidInput",
    "Invariant",
    "Link",
    "Page",
    "Park",
    "Projection",
    "PublicError",
    "Reactor",
    "ReadModel",
    "Recorded",
    "Refusal",
    "Refused",
    "Release",
    "ResetReason",
    "Retry",
    "RunningApp",
    "Saga",
    "Schedule",
    "Seed",
    "Seen",
    "Settings",
    "Stop",
    "Take",
    "TimedOut",
    "Undo",
    "Upcaster",
    "Value",
    "VersionConflict",
    "View",
    "Violation",
    "replace",
]

# These import the database and the web, which a domain that imports Command must not need.
_HEAVY = {
    "Accepted": "headwater.commands.dispatcher",
    "App": "headwater.app",
    "AppUnderTest": "headwater.server.app_under_test",
    "Changes": "headwater.server.running",
    "Example": "headwater.graphql.explorer.examples",
    "GraphQLFailed": "headwater.server.app_under_test",
    "Page": "headwater.server.running",
    "ResetReason": "headwater.live.watcher",
    "RunningApp": "headwater.server.running",
    "Settings": "headwater.config",
}


def __getattr__(name: str) -> object:
    if name not in _HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HEAVY[name]), name)
