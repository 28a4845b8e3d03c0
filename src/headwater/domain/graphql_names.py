"""The names of an app's declarations in GraphQL, and the check that they are valid and unique.

A read model's name is also the name of its projection, so it must not be the name of a unit of Headwater's own.

Headwater checks all names itself, because it can name the classes to rename. Strawberry reports some clashes without
the class; for others it silently uses one of the two types in both places.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from headwater.domain.decider import AnyDecider
from headwater.domain.fields import Field, fields_of
from headwater.domain.messages import EVERY_COMMAND_REFUSES, Command, Refusal
from headwater.domain.read_model import AnyView
from headwater.errors import DefinitionError

_NAME = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*", re.ASCII)  # GraphQL reserves two leading underscores

_SCALARS = [
    "Boolean",
    "Date",
    "DateTime",
    "Decimal",
    "Float",
    "ID",
    "Int",
    "JSON",
    "Position",
    "ResetReason",
    "String",
    "UUID",
]
_FILTERS = [f"{kind}Filter" for kind in ["Boolean", "Date", "DateTime", "Decimal", "Float", "Int", "String", "UUID"]]
_EVENTS = ["Event", "EventConnection", "EventEdge", "EventFilter"]
_ALWAYS = ["Accepted", "AsOf", "Mutation", "Node", "PageInfo", "Query", "Refusal", "ResetReason", "Subscription"]
_SAGAS = ["Saga", "SagaConnection", "SagaEdge", "SagaFilter", "SagaStatus", "SagaStep", "SagaStepState"]

TYPES = frozenset((*_SCALARS, *_FILTERS, *_EVENTS, *_ALWAYS))
"""The types that Headwater adds, or may add, to every schema."""

SAGA_TYPES = frozenset(_SAGAS)
"""The types that Headwater adds to the schema of an app with sagas."""

KEPT = frozenset(("epoch", "leases", "log", "schedules"))
"""Names that Headwater uses for units and positions of its own; no read model may have one. The names of the units of
sagas and reactors cannot clash, because they contain a space."""

_COMBINATORS = ("and_", "or_", "not_")
"""The Python names of `and`, `or` and `not` of a filter, which are beside the fields of the read model."""

_RESOLVER = ("root", "info")
"""The parameters of every resolver, beside its arguments."""

_NO_MEMBERS = ("true", "false", "null")
"""Literals of GraphQL, which cannot be names of enum members."""


def camel(name: str) -> str:
    """Return the name of the field for a type: `account` for `Account`, `bankAccount` for `BankAccount`."""
    first, *rest = name.split("_")
    return first[:1].lower() + first[1:] + "".join(word.capitalize() for word in rest)


def field_name(name: str) -> str:
    """Return the name of a field in GraphQL: `accountId` for `account_id`. Strawberry leaves `type_` unchanged."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() or "_" for word in rest)


def list_name(view: AnyView) -> str:
    """Return the name of the field for a read model's rows: `accounts` for `Account`, `allDailySales` for `DailySales`,
    whose plural is the name itself."""
    many = view.model.__declared__.plural
    return camel(many) if camel(many) != camel(view.name) else f"all{view.name[:1].upper()}{view.name[1:]}"


def check_names(deciders: Mapping[type[Command], AnyDecider], views: Iterable[AnyView], *, sagas: bool) -> None:
    """Check all names of an app. deciders: each command with its decider. sagas: true if the app has sagas.

    Raises:
        DefinitionError: a name is not valid in GraphQL, or two declarations have the same name.
    """
    views = tuple(views)
    names = _Names()
    for name in TYPES | SAGA_TYPES if sagas else TYPES:
        names.take("type", name, "Headwater", "a type of Headwater's own")
    for refused in EVERY_COMMAND_REFUSES:
        names.refusal(refused)
    for view in views:
        names.view(view)
    for command, decider in deciders.items():
        for refused in decider.decide_of[command].refusals:
            names.refusal(refused)
        if not command.__declared__.internal:
            names.command(command, [view for view in views if view.key == decider.key])
    names.roots(views, sagas=sagas)


class _Names:
    """The names in use, by scope. A scope is all types, or the fields of one class; names in one scope must differ."""

    def __init__(self) -> None:
        self._taken: dict[tuple[object, str], tuple[object, str]] = {}

    def take(self, among: object, name: str, owner: object, what: str) -> None:
        """Add a name to a scope. what: the owner, as error messages name it."""
        if not _NAME.fullmatch(name):
            raise DefinitionError(
                f"{what}: {name!r} is not a valid name in GraphQL; use the letters A to Z, digits and underscores, and"
                " begin with a letter"
            )
        other, other_what = self._taken.setdefault((among, name), (owner, what))
        if other != owner:
            raise DefinitionError(f"{other_what} and {what} would both be `{name}` in GraphQL; rename one of them")

    def refusal(self, refused: type[Refusal]) -> None:
        what = f"the refusal {_full_name(refused)}"
        self.take("type", refused.__name__, refused, what)
        # Clients also distinguish refusals by the code, and different class names can result in the same code.
        self.take("code", refused.code, refused, what)
        self._fields(refused, fields_of(refused))

    def command(self, command: type[Command], views: Iterable[AnyView]) -> None:
        """Add the names of a command. views: the read models that are fields of its accepted type."""
        name, what = command.__declared__.name, f"the command {_full_name(command)}"
        self.take("mutation", camel(name), command, what)
        for part in ("Input", "Accepted", "Result"):
            self.take("type", f"{name}{part}", (command, part), f"the {part.lower()} type of {what}")
        self._fields(command, fields_of(command))
        for own in ("commandId", "streamId", "version", "position"):
            self.take((command, "Accepted"), own, "Headwater", f"{name}Accepted.{own}")
        for view in views:
            self.take((command, "Accepted"), camel(view.name), view, f"the read model {_full_name(view.model)}")

    def view(self, view: AnyView) -> None:
        what = f"the read model {_full_name(view.model)}"
        if view.name in KEPT:
            raise DefinitionError(
                f"{what}: Headwater itself has a unit or position named {view.name!r}; give the read model another name"
            )
        self.take("type", view.name, view, what)
        for part in ("Changes", "Connection", "Edge", "Filter", "Order"):
            self.take("type", f"{view.name}{part}", (view, part), f"the {part.lower()} type of {what}")
        for own in ("id", "position"):
            self.take(view.model, own, "Headwater", f"the {own} of every row")
        self._fields(view.model, view.fields)
        for link in view.links:
            self.take(view.model, field_name(link), link, f"{view.model.__name__}.{link}")
        self._key(view)
        self._filter_and_order(view)
        for each in view.fields:
            chosen = each.enum
            if chosen is not None and not each.many:
                owner = (chosen, "Filter")
                self.take("type", f"{chosen.__name__}Filter", owner, f"the filter type of {_full_name(chosen)}")

    def _key(self, view: AnyView) -> None:
        """Check the key, which is an argument of the field that finds a row by it."""
        if view.key in _RESOLVER or field_name(view.key) in ("atLeast", "asOf"):
            raise DefinitionError(
                f"{view.model.__name__}.{view.key}: a key cannot have this name, because an argument of Headwater has"
                " it; rename the key"
            )

    def _filter_and_order(self, view: AnyView) -> None:
        for each in view.fields:
            what = f"{view.model.__name__}.{each.name}"
            if each.name in _COMBINATORS:
                raise DefinitionError(f"{what}: a filter has `{each.name[:-1]}` of its own; rename it")
            if each.is_ordered:
                self.take((view.model, "Order"), f"{each.name.upper()}_ASC", each.name, what)

    def roots(self, views: Iterable[AnyView], *, sagas: bool) -> None:
        """Add the fields of Query and Subscription."""
        for own in ("node", "events", *(("saga", "sagas") if sagas else ())):
            self.take("root", own, "Headwater", f"the field {own} of Headwater's own")
        for view in views:
            name, what = camel(view.name), f"the read model {_full_name(view.model)}"
            for part, field in (("one", name), ("all", list_name(view)), ("changes", f"{name}Changes")):
                self.take("root", field, (view, part), what if part != "all" else f"{what}, as a list (`plural=`),")

    def _fields(self, owner: type, fields: Iterable[Field]) -> None:
        for each in fields:
            self.take(owner, field_name(each.name), each.name, f"{owner.__name__}.{each.name}")
            if each.enum is not None:
                self.take("type", each.enum.__name__, each.enum, f"the enum {_full_name(each.enum)}")
                for member in each.enum:
                    if member.name in _NO_MEMBERS:
                        raise DefinitionError(
                            f"{each.enum.__name__}.{member.name}: an enum's member cannot have this name, because it"
                            " is a literal of GraphQL; rename it"
                        )
                    self.take(each.enum, member.name, member, f"{each.enum.__name__}.{member.name}")


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
