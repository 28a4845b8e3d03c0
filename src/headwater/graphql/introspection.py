"""The lengths of the lists of introspection, from which its cost is estimated.

Both the total and the maximum length of each kind of list are known. A path from `__schema` through parts that belong
to one owner only (types, their fields, the arguments of those) reaches each part once, so the total applies. A path
through the `type` of a field can reach any type, and any type repeatedly, so the maximum applies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from fractions import Fraction
from typing import Any

from graphql import (
    DocumentNode,
    GraphQLField,
    GraphQLNamedType,
    GraphQLSchema,
    SchemaMetaFieldDef,
    TypeMetaFieldDef,
    get_introspection_query,
    is_abstract_type,
    is_enum_type,
    is_input_object_type,
    is_interface_type,
    is_object_type,
    parse,
)

ROOTS: dict[str, GraphQLField] = {"__schema": SchemaMetaFieldDef, "__type": TypeMetaFieldDef}
"""The fields of a query that lead into introspection."""

_OWNED = {
    "__Schema": ("types", "directives"),
    "__Type": ("fields", "inputFields", "enumValues"),
    "__Field": ("args",),
    "__Directive": ("args",),
}
"""The lists of parts with one owner, by the type that has the list. No part is in two lists."""


def standard_query() -> DocumentNode:
    """Return the introspection query of tools such as GraphiQL, with all options."""
    return parse(
        get_introspection_query(
            specified_by_url=True,
            directive_is_repeatable=True,
            schema_description=True,
            input_value_deprecation=True,
            one_of=True,
        )
    )


def has_one_owner(parent: str, field: str) -> bool:
    """True if the values of the field belong to its parent and to no other part of the schema."""
    return field == "__schema" or field in _OWNED.get(parent, ())


class ListLengths:
    """The lengths of a schema's lists."""

    def __init__(self, schema: GraphQLSchema) -> None:
        types = list(schema.type_map.values())
        fields = [field for each in types for field in _fields(each)]
        self._lengths: dict[tuple[str, str], list[int]] = {
            ("__Schema", "types"): [len(types)],
            ("__Schema", "directives"): [len(schema.directives)],
            ("__Type", "fields"): _lengths(_fields(each) for each in types),
            ("__Type", "inputFields"): _lengths(each.fields if is_input_object_type(each) else () for each in types),
            ("__Type", "enumValues"): _lengths(each.values if is_enum_type(each) else () for each in types),
            ("__Type", "interfaces"): _lengths(getattr(each, "interfaces", ()) for each in types),
            ("__Type", "possibleTypes"): _lengths(
                schema.get_possible_types(each) if is_abstract_type(each) else () for each in types
            ),
            ("__Field", "args"): _lengths(field.args for field in fields),
            ("__Directive", "args"): _lengths(each.args for each in schema.directives),
        }

    def length(self, parent: str, field: str, *, each_once: bool) -> Fraction:
        """Return the length to assume for a list; 1 for other fields.

        each_once: each owner of such a list is selected once, so the average length applies; else the maximum.
        """
        lengths = self._lengths.get((parent, field), [1])
        return Fraction(sum(lengths), len(lengths) or 1) if each_once else Fraction(max(lengths, default=0))


def _fields(of: GraphQLNamedType) -> list[Any]:
    return list(of.fields.values()) if is_object_type(of) or is_interface_type(of) else []


def _lengths(lists: Iterable[Sized]) -> list[int]:
    return list(map(len, lists))
