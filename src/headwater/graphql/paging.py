"""The size and the direction of a page."""

from __future__ import annotations

from headwater.errors import BadUserInput
from headwater.graphql.building import Info


def page_size(info: Info, first: int | None, last: int | None, before: object | None) -> int | None:
    """Return the size of a page that goes forward; None for a page that goes backward.

    Raises:
        BadUserInput: the arguments contradict each other, or the size is out of range.
    """
    if first is not None and last is not None:
        raise BadUserInput("Ask with first or with last, not with both.")
    if last is None and before is not None:
        raise BadUserInput("Ask for what is before a cursor with last.")
    size, most = first if last is None else last, info.context.serving.limits.max_page
    if size is not None and not 0 <= size <= most:
        raise BadUserInput(f"A page has 0 to {most} rows; {size} were asked for.")
    if last is not None:
        return None
    return info.context.serving.limits.default_page if first is None else first
