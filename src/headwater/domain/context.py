"""The context of a decision: the time, the actor, the ids, and the states of other streams that it consults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import msgspec

from headwater.domain.row_key import KeyValue
from headwater.errors import DefinitionError

if TYPE_CHECKING:
    from headwater.domain.decider import AnyDecider, Decider

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Consult:
    """A stream whose state a decision reads: its decider, and its key. `consults` of a decider returns these.

        def consults(command: RequestTransfer) -> list[Consult]:
            return [Consult(accounts, command.from_account_id)]

    hold: True if the decision's events must not be written once the stream has changed. The append checks its version,
    and the command is decided again when it has, some 30 times; then the command fails with `Contended`. Without hold
    the state is advice, and costs nothing.
    """

    decider: AnyDecider
    key: KeyValue
    hold: bool = False

    @property
    def stream_id(self) -> UUID:
        """The id of the stream."""
        return self.decider.stream_id(self.key)


class Seen:
    """The states of the other streams that a decision consults, by their decider and key.

        def request(command: RequestTransfer, transfer: Transfer, context: Context) -> TransferRequested:
            seen: Seen = context.seen
            source = seen.of(accounts, command.from_account_id)    # an Account

    A state is advice, unless its `Consult` has `hold=True`: it may have changed since it was read, and may change
    before the decision is written. A refusal is based on states that were read after its command arrived; events may be
    based on states that this process had cached.
    """

    __slots__ = ("_states",)

    def __init__(self, states: Mapping[tuple[str, UUID], object]) -> None:
        self._states = states

    def of(self, decider: Decider[S], key: KeyValue) -> S:
        """Return the state of a stream that `consults` names; the decider's initial state if the stream has no events.

        Raises:
            DefinitionError: `consults` does not name the stream for this command.
        """
        try:
            return self._states[decider.category, decider.stream_id(key)]  # type: ignore[return-value]  # the state is of this very decider
        except KeyError:
            raise DefinitionError(
                f"A decision reads {decider.category} {key}, which `consults` does not name for its command"
            ) from None

    def __repr__(self) -> str:
        return f"Seen({dict(self._states)!r})"


NOTHING_SEEN = Seen({})
"""The consulted streams of a decider without `consults`: none."""


class Context(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The circumstances of a decision. A decide function whose third parameter has this annotation receives them:

        def place_order(command: PlaceOrder, order: Order, context: Context) -> OrderPlaced | SaleIsOver:
            sale = context.seen.of(sales, command.sale_id)
            if context.now >= sale.ends_at:
                return SaleIsOver(ended_at=sale.ends_at)
            ...

    now: the time of the decision in UTC, by the clock of the server. A command that is decided again gets a later one.
    actor: the one who sent the command; `saga NAME` or `schedule NAME` for a command of the app itself. command_id,
    correlation_id: as its events have them. seen: the states of the streams that `consults` names.
    """

    now: datetime
    actor: str | None
    command_id: UUID
    correlation_id: UUID
    seen: Seen = NOTHING_SEEN
