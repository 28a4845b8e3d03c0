"""The route of a read model as Headwater calls it: from a recorded event to the keys of the rows that it changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from operator import attrgetter
from typing import Any, TypeAlias, cast

from headwater.domain.fields import name_of
from headwater.domain.messages import Event, Recorded
from headwater.domain.read_model import AnyView
from headwater.domain.row_key import KeyFields, RowKey

RouteToOne: TypeAlias = Callable[[Recorded[Any]], RowKey]
RouteToMany: TypeAlias = Callable[[Recorded[Any]], Sequence[RowKey]]


class RowRoutes:
    """The routes of a read model's events, by their class.

    to_one: of events that change exactly one row. to_many: of the others. An event is in one of the two, so that a loop
    over many events makes no list for each.
    """

    def __init__(self, view: AnyView) -> None:
        self.to_one: dict[type[Event], RouteToOne] = {}
        self.to_many: dict[type[Event], RouteToMany] = {}
        if view.route is not None:
            self.to_many = dict.fromkeys(view.events, _keys_of(view.route, view.key))
        else:
            self.to_one = {event: _key_of(event, view.key) for event in view.events}

    def keys(self, event: Recorded[Event]) -> Sequence[RowKey]:
        """Return the keys of the rows that an event changes: each once, or none.

        Raises:
            TypeError, ValueError: the route returned something else.
            Exception: the route raised it.
        """
        kind = type(event.data)
        if (one := self.to_one.get(kind)) is not None:
            return (one(event),)
        many = self.to_many.get(kind)
        return () if many is None else many(event)


def _key_of(event: type[Event], key: KeyFields) -> RouteToOne:
    """Return the route by the fields of an event; the id of its stream in place of one that it does not have."""
    given = event.__struct_fields__
    values = attrgetter(*(f"data.{name}" if name in given else "stream_id" for name in key.names))
    if key.is_uuid:
        return cast("RouteToOne", values)  # `View` ensures that it is a UUID
    return lambda recorded: key.take(values(recorded))


def _keys_of(route: Callable[[Recorded[Any]], Any], key: KeyFields) -> RouteToMany:
    is_one = _is_tuple_of_parts if len(key.fields) > 1 else _is_part

    def keys(event: Recorded[Any]) -> Sequence[RowKey]:
        given = route(event)
        if given is None:
            return ()
        try:
            if is_one(given):
                return (key.take(given),)
            return tuple(dict.fromkeys(map(key.take, given)))
        except TypeError as error:
            raise TypeError(
                f"{name_of(route)} returned {given!r}, which is neither a key ({', '.join(key.names)}), nor a list of "
                f"keys, nor None: {error}"
            ) from error

    return keys


def _is_part(given: object) -> bool:
    return not isinstance(given, list | tuple | Set)


def _is_tuple_of_parts(given: object) -> bool:
    """True for the key of several fields, which is a tuple. Several keys in a tuple are tuples in it."""
    return isinstance(given, tuple) and bool(given) and not isinstance(given[0], tuple)
