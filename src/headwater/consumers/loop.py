"""The parts that every loop which follows the log is built from: its ports and its settings."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.clock import Clock
from headwater.commands.dispatcher import Dispatcher
from headwater.eventstore.appender import Appender
from headwater.eventstore.log import Log
from headwater.eventstore.positions import Positions
from headwater.postgres.database import Database


@dataclass(frozen=True, slots=True)
class Ports:
    """The connections of a loop. positions: of the log and of the units, announced by the doorbell."""

    database: Database
    log: Log
    positions: Positions


@dataclass(frozen=True, slots=True)
class CommandPath:
    """Issues the commands of sagas and schedules. appender: for the records of sagas. clock: the time of deadlines,
    timers and schedules."""

    appender: Appender
    dispatcher: Dispatcher
    clock: Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """The pace and the limits of a loop.

    batch: events between two checkpoints, at most; so many may be taken again after a crash.
    at_once: keys that a saga or a reactor takes concurrently, at most. Up to 50 parked keys are retried beside them.
    cache: rows of a projection, or instances of a saga, in memory, at most.
    poll: seconds after which the log is read even if no doorbell rang.
    lease: duration of this process's lease, in seconds. PostgreSQL ends a transaction that is silent for half of it, so
    that a stopped process holds no lock against its successor.
    """

    batch: int = 500
    at_once: int = 256
    cache: int = 10_000
    poll: float = 1.0
    lease: float = 6.0
