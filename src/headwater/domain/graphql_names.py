"""The names of an app's declarations in GraphQL, and the check that they are valid and unique.

A read model's name is also the name of its projection, so it must not be the name of a unit of Headwater's own.

Headwater checks all names itself, because it can name the classes to rename. Strawberry reports some clashes without
the class; for others it silently uses one of the two types in both places.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from headwater.domain.decider import AnyDecider
from headwater.domain.fields import Field, Kind, fields_of, filterable, ordered_paths, values_of
from headwater.domain.messages import EVERY_COMMAND_REFUSES, Command, Refusal
from headwater.domain.read_model import AnyView
from headwater.domain.value import Value
from headwater.errors import DefinitionError

_NAME = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*", re.ASCII)  # GraphQL reserves two leading underscores

_SCALARS = [
    "Base64",
    "Boolean",
    "Date",
    "DateTime",
    "Decimal",
    "Duration",
    "Float",
    "ID",
    "Int",
    "JSON",
    "Position",
    "ResetReason",
    "String",
    "Time",
    "UUID",
]
_FILTERED = [
    *("Base64", "Boolean", "Date", "DateTime", "Decimal", "Duration"),
    *("Float", "Int", "String", "Time", "UUID"),
]
_FILTERS = [f"{kind}Filter" for kind in _FILTERED]
_EVENTS = ["Event", "EventConnection", "EventEdge", "EventFilter"]
_ALWAYS = [
    *("Accepted", "AsOf", "Mutation", "Node", "PageInfo", "Query"),
    *("Refusal", "ResetReason", "RowState", "Subscription"),
]
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


def union_name(values: Iterable[type[Value]]) -> str:
    """Return the name of the type for one of several values: `CardOrBankTransfer`."""
    return "Or".join(value.__declared__.name for value in values)


def order_name(path: Iterable[Field]) -> str:
    """Return the name of an ordered value in an order, without its direction: `ADDRESS_CITY`."""
    return "_".join(each.name.upper() for each in path)


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
            names.command(command, [view for view in views if view.key.is_of(decider.key_fields)])
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
        self._values(fields_of(refused))

    def command(self, command: type[Command], views: Iterable[AnyView]) -> None:
        """Add the names of a command. views: the read models that are fields of its accepted type."""
        name, what = command.__declared__.name, f"the command {_full_name(command)}"
        self.take("mutation", camel(name), command, what)
        for part in ("Input", "Accepted", "Result"):
            self.take("type", f"{name}{part}", (command, part), f"the {part.lower()} type of {what}")
        self._fields(command, fields_of(command))
        self._inputs(fields_of(command))
        for own in ("commandId", "streamId", "version", "position"):
            self.take((command, "Accepted"), own, "Headwater", f"{name}Accepted.{own}")
        for view in views:
            self.take((command, "Accepted"), "rowState", "Headwater", f"{name}Accepted.rowState")
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
        for own in ("id", "position", "rowState"):
            self.take(view.model, own, "Headwater", f"the {own} of every row")
        self._fields(view.model, view.fields)
        for link in view.links:
            self.take(view.model, field_name(link), link, f"{view.model.__name__}.{link}")
        self._key(view)
        self._filter_and_order(view)
        self._values(view.fields)
        self._filters(view.fields)

    def _values(self, fields: Iterable[Field]) -> None:
        """Add the object types of nested values, and the unions of several."""
        for value in values_of(fields):
            self.take("type", value.__declared__.name, value, f"the value {_full_name(value)}")
            self._fields(value, fields_of(value))
        self._unions(fields, "")

    def _inputs(self, fields: Iterable[Field]) -> None:
        """Add the input types of nested values, and those of one of several."""
        for value in values_of(fields):
            name = f"{value.__declared__.name}Input"
            self.take("type", name, (value, "Input"), f"the input type of the value {_full_name(value)}")
            self._fields(value, fields_of(value))
        self._unions(fields, "Input")

    def _unions(self, fields: Iterable[Field], part: str) -> None:
        for each in [*fields, *(inner for value in values_of(fields) for inner in fields_of(value))]:
            if each.kind is Kind.UNION:
                self.take("type", f"{union_name(each.values)}{part}", (each.values, part), f"the field {each.name}")
                for value in each.values:
                    what = f"the value {_full_name(value)}"
                    self.take((each.values, "choice"), camel(value.__declared__.name), value, what)

    def _filters(self, fields: Iterable[Field]) -> None:
        """Add the filter types of enums and nested values."""
        for each in filterable(fields):
            if each.enum is not None:
                self._filter(each.enum, each.enum.__name__)
            for value in each.values:
                self._filter(value, value.__declared__.name)
                self.take((value, "Filter"), "isNull", "Headwater", f"the filter isNull of {value.__name__}")
                for inner in fields_of(value):
                    self.take((value, "Filter"), field_name(inner.name), inner.name, f"{value.__name__}.{inner.name}")
                self._filters(fields_of(value))

    def _filter(self, owner: type, name: str) -> None:
        self.take("type", f"{name}Filter", (owner, "Filter"), f"the filter type of {_full_name(owner)}")

    def _key(self, view: AnyView) -> None:
        """Check the key, which is an argument of the field that finds a row by it."""
        for name in view.key.names:
            if name in _RESOLVER or field_name(name) in ("atLeast", "asOf"):
                raise DefinitionError(
                    f"{view.model.__name__}.{name}: a key cannot have this name, because an argument of Headwater has"
                    " it; rename the key"
                )

    def _filter_and_order(self, view: AnyView) -> None:
        for each in view.fields:
            what = f"{view.model.__name__}.{each.name}"
            if each.name in _COMBINATORS:
                raise DefinitionError(f"{what}: a filter has `{each.name[:-1]}` of its own; rename it")
        for path in ordered_paths(view.fields):
            dotted = ".".join(each.name for each in path)
            self.take((view.model, "Order"), f"{order_name(path)}_ASC", dotted, f"{view.model.__name__}.{dotted}")

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
