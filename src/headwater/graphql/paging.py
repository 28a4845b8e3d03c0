"""The size and the direction of a page, and its `PageInfo`."""

from __future__ import annotations

from collections.abc import Sequence

from headwater.errors import BadUserInput
from headwater.graphql.building import Info
from headwater.graphql.interfaces import PageInfo


def page_size(info: Info, first: int | None, last: int | None, before: object | None) -> int | None:
    """Return the size of a page that goes forward; None for a page that goes backward.

    Raises:
        BadUserInput: the arguments contradict each other, or the size is out of range.
    """
    if first is not None and last is not None:
        raise BadUserInput("Give first or last, not both.")
    if last is None and before is not None:
        raise BadUserInput("Use before together with last.")
    size, most = first if last is None else last, info.context.serving.limits.max_page
    if size is not None and not 0 <= size <= most:
        raise BadUserInput(f"A page has 0 to {most} rows, not {size}.")
    if last is not None:
        return None
    return info.context.serving.limits.default_page if first is None else first


def page_info(cursors: Sequence[str], *, has_next: bool, has_previous: bool) -> PageInfo:
    """Return the `PageInfo` of a page. cursors: at least that of the first and that of the last entry, in order."""
    return PageInfo(
        has_next_page=has_next,
        has_previous_page=has_previous,
        start_cursor=cursors[0] if cursors else None,
        end_cursor=cursors[-1] if cursors else None,
    )
