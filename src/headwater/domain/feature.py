"""Features: lists of declarations, one for each folder of a domain. An app is a list of features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from headwater.domain.class_keywords import is_list
from headwater.domain.decider import AnyDecider, Decider
from headwater.domain.fields import Field, fields_of
from headwater.domain.graphql_names import check_names
from headwater.domain.invariant import AnyInvariant, Invariant
from headwater.domain.messages import EVERY_COMMAND_REFUSES, Command, Event, Refusal
from headwater.domain.money import warn_of_float_money
from headwater.domain.projection import Projection
from headwater.domain.reactor import Reactor
from headwater.domain.read_model import AnyView, Link, View, no_key_of
from headwater.domain.row_key import RowKey
from headwater.domain.saga import SAGA_PREFIX, Saga
from headwater.domain.saga_records import RECORDS
from headwater.domain.schedule import Schedule
from headwater.domain.serialization import Codec, require_readable
from headwater.domain.table_names import check_relations
from headwater.domain.upcasting import Upcaster
from headwater.domain.value_rules import shortened
from headwater.errors import DefinitionError, LogError

_RECORD_NAMES = frozenset(record.__declared__.name for record in RECORDS)


@dataclass(frozen=True)
class Feature:
    """The declarations of one part of a domain. An `App` is a list of features.

        accounts = Feature(deciders=[account_decider], views=[account_view], reactors=[statements])

    A feature is only a list: nothing is registered by an import, and nothing is checked before the app is made.
    """

    deciders: Sequence[AnyDecider] = ()
    views: Sequence[AnyView] = ()
    upcasters: Sequence[Upcaster] = ()
    sagas: Sequence[Saga[Any]] = ()
    schedules: Sequence[Schedule] = ()
    reactors: Sequence[Reactor] = ()
    invariants: Sequence[AnyInvariant] = ()
    projections: Sequence[Projection[Any]] = ()

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            given = getattr(self, name)
            if not is_list(given) or not all(isinstance(each, kind) for each in given):
                raise DefinitionError(f"Feature: {name}={shortened(given)} must be a list of {kind.__name__}s")


_KINDS: dict[str, type[object]] = {
    "deciders": Decider,
    "views": View,
    "upcasters": Upcaster,
    "sagas": Saga,
    "schedules": Schedule,
    "reactors": Reactor,
    "invariants": Invariant,
    "projections": Projection,
}


class Domain:
    """All declarations of an app's features, checked against each other.

    Raises:
        DefinitionError: two declarations have one name, or one refers to a declaration that no feature contains.
    """

    def __init__(self, features: Iterable[Feature]) -> None:
        features = tuple(features)
        for each in features:
            if not isinstance(each, Feature):
                raise DefinitionError(f"App: features={shortened(features)} must be a list of Features")
        self.deciders = tuple(decider for feature in features for decider in feature.deciders)
        self.views = tuple(view for feature in features for view in feature.views)
        self.decider_named = {decider.category: decider for decider in self.deciders}
        self.schedules = tuple(schedule for feature in features for schedule in feature.schedules)
        self.decider_of = self._commands()
        self.command_named = {command.__declared__.name: command for command in self.decider_of}
        self.category_of = self._events()
        self.view_of = {view.model: view for view in self.views}
        self.sagas = tuple(saga for feature in features for saga in feature.sagas)
        self.reactors = tuple(reactor for feature in features for reactor in feature.reactors)
        self.invariants = tuple(invariant for feature in features for invariant in feature.invariants)
        self.projections = tuple(projection for feature in features for projection in feature.projections)
        self.codec = Codec(
            # The records also without sagas: the log may have those of a saga that the app no longer has.
            (*self.category_of, *self._messages(), *RECORDS),
            (upcaster for feature in features for upcaster in feature.upcasters),
        )
        self._check_names()
        self._check_sagas()
        self._check_reactors()
        self._check_projections()
        self._check_invariants()
        self._check_views()
        warn_of_float_money(self._classes())
        check_relations(self.views)
        check_names(self.decider_of, self.views, sagas=bool(self.sagas))

    def complaint_about(self, category: str, name: str, version: int) -> str | None:
        """Return why the app cannot read events of this category, type and version; None if it can."""
        if category.startswith(SAGA_PREFIX):  # the app may no longer have the saga; its records are Headwater's own
            return None if name in _RECORD_NAMES else f"{name} is no record of a saga"
        if category not in self.decider_named:
            return f"no feature of this app has a decider of the category {category!r}"
        try:
            classes = self.codec.classes_of(name, version)
        except LogError as error:
            return str(error)
        for event in classes:
            if self.category_of[event] != category:
                return f"it would be read as {event.__name__}, which belongs to {self.category_of[event]} in this app"
        return None

    def _commands(self) -> dict[type[Command], AnyDecider]:
        owners: dict[type[Command], AnyDecider] = {}
        for decider in self.deciders:
            for command in decider.commands:
                if command in owners:
                    raise DefinitionError(
                        f"{command.__name__} is decided by both {owners[command].category} and {decider.category}"
                    )
                owners[command] = decider
                fields_of(command)
                require_readable(command)
            for decide in decider.decide_of.values():
                for refusal in decide.refusals:
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
        """Return the messages that sagas send to themselves: their events that no decider has."""
        return list(
            dict.fromkeys(event for saga in self.sagas for event in saga.events if event not in self.category_of)
        )

    def _classes(self) -> Iterator[type]:
        """Yield the classes of the app's data: messages, states and rows."""
        yield from (*self.decider_of, *self.category_of, *self._messages(), *(view.model for view in self.views))
        states = (*(each.state_type for each in self.deciders), *(each.state_type for each in self.sagas))
        yield from (state for state in states if isinstance(state, type))

    def refusal(self, command: type[Command], code: str, facts: Mapping[str, object]) -> Refusal:
        """Return a refusal of a command from its stored code and facts.

        Raises:
            LogError: no refusal of the command has this code and these facts any more.
        """
        what = f"A stored refusal of {command.__name__}, {code}, cannot be read"
        for refusal in (*self.decider_of[command].decide_of[command].own_refusals, *EVERY_COMMAND_REFUSES):
            if refusal.code == code:
                try:
                    return msgspec.convert(facts, refusal)
                except msgspec.ValidationError as error:
                    raise LogError(f"{what}: {error}") from error
        raise LogError(f"{what}: the command has no such refusal")

    def saga_named(self, name: str) -> Saga[Any]:
        """Return the saga of this name. Raises KeyError if there is none."""
        return {saga.name: saga for saga in self.sagas}[name]

    def view_named(self, name: str) -> AnyView:
        """Return the view of this name. Raises KeyError if there is none."""
        return {view.name: view for view in self.views}[name]

    def by_stream(self, view: AnyView) -> bool:
        """True if each row of a read model is the fold of one stream, which has the row's key."""
        return self.stream_of(view) is not None

    def stream_of(self, view: AnyView) -> Callable[[RowKey], UUID] | None:
        """Return the function from a row's key to the id of the one stream of which it is the fold; None if rows gather
        several streams."""
        deciders = {self._decider_of(event) for event in view.events}
        if view.route is not None or not all(view.key.is_of(decider.key_fields) for decider in deciders):
            return None
        if view.key.is_uuid:
            return _the_key  # which the deciders share, because an id is that of one stream only
        if len(deciders) > 1:
            return None
        (decider,) = deciders
        return lambda key: decider.stream_id(view.key.values(key))

    def _decider_of(self, event: type[Event]) -> AnyDecider:
        return self.decider_named[self.category_of[event]]

    def _check_names(self) -> None:
        _require_unique("category", [decider.category for decider in self.deciders])
        for category in self.decider_named:
            if category.startswith(SAGA_PREFIX):
                raise DefinitionError(
                    f"The category {category!r} is kept for the streams of sagas; give the decider another category"
                )
        _require_unique("command", [command.__declared__.name for command in self.decider_of])
        _require_unique("read model", [view.name for view in self.views])
        _require_unique("saga", [saga.name for saga in self.sagas])
        _require_unique("schedule", [schedule.name for schedule in self.schedules])
        _require_unique("projection", [projection.name for projection in self.projections])
        _require_unique("reactor", [reactor.name for reactor in self.reactors])
        _require_unique("invariant", [invariant.name for invariant in self.invariants])

    def _check_sagas(self) -> None:
        for saga in self.sagas:
            routed = [event for event in saga.events if event in self.category_of]
            if not routed:
                raise DefinitionError(
                    f"The saga {saga.name} takes no event of any decider, so that it would never begin; add one to"
                    " its `react`"
                )
            for event in routed:
                saga.check_route(event, self.decider_named[self.category_of[event]].key)
            for outcome, command in saga.outcomes:
                shown = f"{outcome.__name__}[{command.__name__}]"
                if command not in self.decider_of:
                    raise DefinitionError(
                        f"The saga {saga.name} takes {shown}, but no decider's decide takes the command"
                    )
                if saga.steps is not None and command not in saga.steps:
                    raise DefinitionError(
                        f"The saga {saga.name} takes {shown}, but none of its steps has the command: no annotation of a"
                        f" result of its react names Do[{command.__name__}]"
                    )
            for command in saga.steps or ():
                if command not in self.decider_of:
                    raise DefinitionError(
                        f"The saga {saga.name} has steps with {command.__name__}, which no decider's decide takes"
                    )

    def _check_reactors(self) -> None:
        for reactor in self.reactors:
            for event in reactor.events:
                if event not in self.category_of:
                    raise DefinitionError(
                        f"The reactor {reactor.name} takes {event.__name__}, which no decider's evolve takes"
                    )

    def _check_projections(self) -> None:
        views = {view.name.casefold(): view.name for view in self.views}
        for projection in self.projections:
            if (view := views.get(projection.name.casefold())) is not None:
                raise DefinitionError(
                    f"The projection {projection.name} has the name of the read model {view}, so that `headwater"
                    f" rebuild {projection.name}` could mean either; rename the projection"
                )
            for event in projection.events:
                if event not in self.category_of:
                    raise DefinitionError(
                        f"The projection {projection.name} takes {event.__name__}, which no decider's evolve takes"
                    )

    def _check_invariants(self) -> None:
        views = {view.name.casefold(): view.name for view in self.views}
        for invariant in self.invariants:
            if (view := views.get(invariant.name.casefold())) is not None:
                raise DefinitionError(
                    f"The invariant {invariant.name} has the name of the read model {view}, so that `headwater verify "
                    f"{invariant.name}` could mean either; rename the invariant"
                )
            for event in invariant.events:
                if event not in self.category_of:
                    raise DefinitionError(
                        f"The invariant {invariant.name} looks at {event.__name__}, which no decider's evolve takes"
                    )

    def _check_link(self, view: AnyView, name: str, link: Link) -> None:
        columns = {each.name: each for each in view.fields}
        given, key = [columns[by] for by in link.fields], self.view_of[link.to].key
        if len(given) != len(key.fields) or not all(map(Field.matches, given, key.fields)):
            kinds = ", ".join(f"{each.name}: {(each.enum or each.kind.value).__name__}" for each in key.fields)
            raise DefinitionError(
                f"{view.model.__name__}.{name}: `by={link.by!r}` must name fields of the types of {link.to.__name__}'s "
                f"key, {kinds}"
            )

    def _check_views(self) -> None:
        for view in self.views:
            for event in view.events:
                if event not in self.category_of:
                    raise DefinitionError(f"{view.name} folds {event.__name__}, which no decider's evolve takes")
                name = view.by_stream(event)
                if name is not None and name != self._decider_of(event).key:
                    raise no_key_of(view, event, next(part for part in view.key.fields if part.name == name))
            for name, link in view.links.items():
                if link.to not in self.view_of:
                    raise DefinitionError(
                        f"{view.model.__name__}.{name} links to {link.to.__name__}, which no feature contains"
                    )
                self._check_link(view, name, link)
            if view.history and self.by_stream(view):
                raise DefinitionError(
                    f"{view.model.__name__}: each of its rows is the fold of one stream and can be read as of the past"
                    " without `history=True`; leave it out"
                )


def _the_key(key: RowKey) -> UUID:
    assert isinstance(key, UUID)  # of a read model whose key is a UUID
    return key


def _require_unique(what: str, names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        # Without regard to case, because names become tables, fields and channels.
        if name.casefold() in seen:
            article = "an" if what[0] in "aeiou" else "a"
            raise DefinitionError(
                f"The app has two declarations of {article} {what} named {name!r}; rename one of them"
            )
        seen[name.casefold()] = name
