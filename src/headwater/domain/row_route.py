"""The route of a read model as Headwater calls it: from a recorded event to the keys of the rows that it changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from operator import attrgetter
from typing import Any, TypeAlias, cast
from uuid import UUID

from headwater.domain.fields import name_of
from headwater.domain.messages import Event, Recorded
from headwater.domain.read_model import AnyView

RouteToOne: TypeAlias = Callable[[Recorded[Any]], UUID]
RouteToMany: TypeAlias = Callable[[Recorded[Any]], Sequence[UUID]]


class RowRoutes:
    """The routes of a read model's events, by their class.

    to_one: of events that change exactly one row. to_many: of the others. An event is in one of the two, so that a loop
    over many events makes no list for each.
    """

    def __init__(self, view: AnyView) -> None:
        self.to_one: dict[type[Event], RouteToOne] = {}
        self.to_many: dict[type[Event], RouteToMany] = {}
        if view.route is not None:
            self.to_many = dict.fromkeys(view.events, _keys_of(view.route))
            return
        for event in view.events:
            path = "stream_id" if view.is_routed_by_stream(event) else f"data.{view.key}"
            self.to_one[event] = cast("RouteToOne", attrgetter(path))  # `View` ensures that it is a UUID

    def keys(self, event: Recorded[Event]) -> Sequence[UUID]:
        """Return the keys of the rows that an event changes: each once, or none.

        Raises:
            TypeError: the route returned something else.
            Exception: the route raised it.
        """
        kind = type(event.data)
        if (one := self.to_one.get(kind)) is not None:
            return (one(event),)
        many = self.to_many.get(kind)
        return () if many is None else many(event)


def _keys_of(route: Callable[[Recorded[Any]], Any]) -> RouteToMany:
    def keys(event: Recorded[Any]) -> Sequence[UUID]:
        given = route(event)
        if isinstance(given, UUID):
            return (given,)
        if given is None:
            return ()
        if isinstance(given, list | tuple | Set) and all(isinstance(key, UUID) for key in given):
            return tuple(dict.fromkeys(given))
        raise TypeError(f"{name_of(route)} returned {given!r}, which is neither a UUID, nor a list of them, nor None")

    return keys
