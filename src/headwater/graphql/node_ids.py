"""The `id` of a row: `Account:<key>`, and `Account:<key>@<position>` for a row of the past.

It is unique among all rows, so that a client can keep the rows of all read models in one store. A row of the past has
another id than the row of now: otherwise it would take its place in that store.
"""

from __future__ import annotations

from headwater.domain.read_model import AnyView
from headwater.domain.row_key import RowKey
from headwater.errors import BadUserInput
from headwater.eventstore.epoch import Place, parse_place


def node_id(view: AnyView, key: RowKey, as_of: Place | None = None) -> str:
    """Return the id of a row. as_of: the position in the past that the row is read at."""
    past = "" if as_of is None else f"@{as_of.spell()}"
    return f"{view.name}:{view.key.text(key)}{past}"  # no name has a colon, and no text of a key an @


def parse_node_id(text: str) -> tuple[str, str, Place | None]:
    """Return the name of the read model, the text of the key, and the position of a row of the past.

    Raises:
        BadUserInput: the text is not the id of a row.
    """
    name, colon, rest = text.partition(":")
    key, at, position = rest.partition("@")
    place = parse_place(position) if at else None
    if not colon or (at and place is None):
        raise no_node(text)
    return name, key, place


def no_node(text: str) -> BadUserInput:
    """Return the error for an id that no row can have."""
    return BadUserInput(f"{text[:100]!r} is not the id of a row; give an `id` back as it came.")
