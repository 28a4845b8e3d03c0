"""The resources of a process from which it serves GraphQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from headwater.commands.dispatcher import Accepted
from headwater.domain.messages import Command, Refusal
from headwater.domain.read_model import ReadModel
from headwater.eventstore.audit_trail import Trail
from headwater.eventstore.epoch import Epochs
from headwater.live.feed import Feed
from headwater.postgres.database import Database
from headwater.projections.history import History
from headwater.telemetry import Telemetry


class Executes(Protocol):
    """Executes the commands of mutations; see `Dispatcher`."""

    async def execute(
        self, command: Command, *, command_id: UUID | None = None, expected_version: int | None = None
    ) -> Accepted | Refusal: ...


@dataclass(frozen=True)
class ClientLimits:
    """The bounds of what a client reads.

    default_page: rows of a page without `first`. max_page: most rows of a page. outbox: keys that a subscription holds
    for a slow reader.
    """

    default_page: int
    max_page: int
    outbox: int


@dataclass(frozen=True, kw_only=True)
class Serving:
    """The resources from which a process serves GraphQL. feeds and histories: one for each read model."""

    dispatcher: Executes
    feeds: Mapping[type[ReadModel], Feed]
    histories: Mapping[type[ReadModel], History]
    trail: Trail
    database: Database
    limits: ClientLimits
    telemetry: Telemetry
    epochs: Epochs
