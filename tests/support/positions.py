"""The positions of the log as GraphQL spells them."""

from __future__ import annotations

from headwater.eventstore.epoch import parse_place
from headwater.server.node import Node


def number(position: str) -> int:
    """Return the number in the text of a position."""
    place = parse_place(position)
    assert place is not None, position
    return place.position


def text(node: Node, position: int) -> str:
    """Return the text of a position in the current epoch of a node's log."""
    return node.positions.epochs.current.place(position).spell()
