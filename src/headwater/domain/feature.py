"""A feature: what one folder of a domain brings, as lists that one can read. An app is a list of features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from headwater.domain.decider import Decider
from headwater.domain.fields import fields_of
from headwater.domain.graphql_names import check_names
from headwater.domain.messages import Command, Event
from headwater.domain.reactor import Reactor
from headwater.domain.read_model import View
from headwater.domain.saga import SAGA_PREFIX, Saga
from headwater.domain.saga_records import RECORDS
from headwater.domain.schedule import Schedule
from headwater.domain.serialization import Codec, require_readable
from headwater.domain.table_names import check_relations
from headwater.domain.upcasting import Upcaster
from headwater.errors import DefinitionError, LogError

_RECORD_NAMES = frozenset(record.__declared__.name for record in RECORDS)


@dataclass(frozen=True)
class Feature:
    """What a part of a domain brings."""

    deciders: Sequence[Decider[Any, Any, Any]] = ()
    views: Sequence[View[Any]] = ()
    upcasters: Sequence[Upcaster] = ()
    sagas: Sequence[Saga[Any, Any]] = ()
    schedules: Sequence[Schedule] = ()
    reactors: Sequence[Reactor] = ()


class Domain:
    """Everything that an app's features bring, checked once against each other.

    Raises:
        DefinitionError: two things have one name, or something refers to what no feature brings.
    """

    def __init__(self, features: Iterable[Feature]) -> None:
        features = tuple(features)
        self.deciders = tuple(decider for feature in features for decider in feature.deciders)
        self.views = tuple(view for feature in features for view in feature.views)
        self.decider_named = {decider.category: decider for decider in self.deciders}
        self.schedules = tuple(schedule for feature in features for schedule in feature.schedules)
        self.decider_of = self._commands()
        self.category_of = self._events()
        self.view_of = {view.model: view for view in self.views}
        self.sagas = tuple(saga for feature in features for saga in feature.sagas)
        self.reactors = tuple(reactor for feature in features for reactor in feature.reactors)
        self.codec = Codec(
            # The records also where there is no saga: the log may have those of one that was taken out.
            (*self.category_of, *self._messages(), *RECORDS),
            (upcaster for feature in features for upcaster in feature.upcasters),
        )
        self._check_names()
        self._check_sagas()
        self._check_reactors()
        self._check_views()
        check_relations(self.views)
        check_names(
            {command: decider.key for command, decider in self.decider_of.items()}, self.views, sagas=bool(self.sagas)
        )

    def complaint_about(self, category: str, name: str, version: int) -> str | None:
        """Why events that are stored so cannot be read by this app; None when they can."""
        if category.startswith(SAGA_PREFIX):  # its saga may have been taken out, and its records are Headwater's
            return None if name in _RECORD_NAMES else f"{name} is no record of a saga"
        if category not in self.decider_named:
            return f"no feature of this app brings the category {category!r}"
        try:
            classes = self.codec.classes_of(name, version)
        except LogError as error:
            return str(error)
        for event in classes:
            if self.category_of[event] != category:
                return f"it would be read as {event.__name__}, which belongs to {self.category_of[event]} in this app"
        return None

    def _commands(self) -> dict[type[Command], Decider[Any, Any, Any]]:
        owners: dict[type[Command], Decider[Any, Any, Any]] = {}
        for decider in self.deciders:
            for command in decider.commands:
                if command in owners:
                    raise DefinitionError(
                        f"{command.__name__} is decided by both {owners[command].category} and {decider.category}"
                    )
                owners[command] = decider
                fields_of(command)
                require_readable(command)
                for refusal in command.__declared__.refuses:
                    fields_of(refusal)
        return owners

    def _events(self) -> dict[type[Event], str]:
        owners: dict[type[Event], str] = {}
        for decider in self.deciders:
            for event in decider.events:
                if event in owners:
                    raise DefinitionError(f"{event.__name__} belongs to both {owners[event]} and {decider.category}")
                owners[event] = decider.category
        return owners

    def _messages(self) -> list[type[Event]]:
        """The sagas' own messages: events of theirs that no decider has."""
        return list(
            dict.fromkeys(event for saga in self.sagas for event in saga.events if event not in self.category_of)
        )

    def saga_named(self, name: str) -> Saga[Any, Any]:
        """The saga of that name. Raises KeyError when there is none."""
        return {saga.name: saga for saga in self.sagas}[name]

    def view_named(self, name: str) -> View[Any]:
        """The view of that name. Raises KeyError when there is none."""
        return {view.name: view for view in self.views}[name]

    def by_stream(self, view: View[Any]) -> bool:
        """Whether each row of a read model is the fold of the stream of its key."""
        keys = {decider.category: decider.key for decider in self.deciders}
        return view.route is None and all(keys[self.category_of[event]] == view.key for event in view.events)

    def _check_names(self) -> None:
        _refuse_twice("category", [decider.category for decider in self.deciders])
        for category in self.decider_named:
            if category.startswith(SAGA_PREFIX):
                raise DefinitionError(
                    f"Streams of the category {category!r} are a saga's own; name the decider otherwise"
                )
        _refuse_twice("command", [command.__declared__.name for command in self.decider_of])
        _refuse_twice("read model", [view.name for view in self.views])
        _refuse_twice("saga", [saga.name for saga in self.sagas])
        _refuse_twice("schedule", [schedule.name for schedule in self.schedules])
        _refuse_twice("reactor", [reactor.name for reactor in self.reactors])

    def _check_sagas(self) -> None:
        for saga in self.sagas:
            routed = [event for event in saga.events if event in self.category_of]
            if not routed:
                raise DefinitionError(f"The saga {saga.name} takes no event of any decider: it would never begin")
            for event in routed:
                saga.check_route(event)

    def _check_reactors(self) -> None:
        for reactor in self.reactors:
            for event in reactor.events:
                if event not in self.category_of:
                    raise DefinitionError(
                        f"The reactor {reactor.name} takes {event.__name__}, which no decider's evolve takes"
                    )

    def _check_views(self) -> None:
        for view in self.views:
            for event in view.events:
                if event not in self.category_of:
                    raise DefinitionError(f"{view.name} folds {event.__name__}, which no decider's evolve takes")
            for name, link in view.links.items():
                if link.to not in self.view_of:
                    raise DefinitionError(
                        f"{view.model.__name__}.{name} links to {link.to.__name__}, which no feature brings"
                    )
            if view.history and self.by_stream(view):
                raise DefinitionError(
                    f"{view.model.__name__}: each of its rows is the fold of one stream, so that it has its history "
                    "without `history=True`; leave that out"
                )


def _refuse_twice(what: str, names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        # Compared without case, since names become tables, fields and channels.
        if name.casefold() in seen:
            raise DefinitionError(f"Two of the app's features bring a {what} named {name!r}")
        seen[name.casefold()] = name
