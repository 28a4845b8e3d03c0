"""Headwater: event sourcing for Python on PostgreSQL, served live over GraphQL."""

from headwater.app import App, Example
from headwater.decider import Decider, Release, Take
from headwater.errors import HeadwaterError, PublicError
from headwater.feature import Feature
from headwater.messages import Command, Event, Exact, Recorded, Refused
from headwater.view import Link, ReadModel, View

__all__ = [
    "App",
    "Command",
    "Decider",
    "Event",
    "Exact",
    "Example",
    "Feature",
    "HeadwaterError",
    "Link",
    "PublicError",
    "ReadModel",
    "Recorded",
    "Refused",
    "Release",
    "Take",
    "View",
]
