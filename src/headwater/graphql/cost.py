"""The cost of a document, estimated in one pass before any other validation.

A chain of fragments that each spread the next one twice doubles in size with each link. So the cost of a fragment is
computed once, and costs are multiplied rather than counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import ceil
from typing import Any

from graphql import (
    ASTValidationRule,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLNamedType,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    OperationDefinitionNode,
    OperationType,
    SelectionNode,
    SelectionSetNode,
    TypeInfo,
    ValidationContext,
    ValidationRule,
    get_named_type,
)

from headwater.graphql.introspection import ROOTS, Lists, is_had, standard_query

CODE = "OPERATION_TOO_EXPENSIVE"

MOST_LEVELS = 100
"""Nested selection sets that are followed, those of fragments counted. Deeper than any allowed depth, and shallow
enough for Python's stack."""


@dataclass(frozen=True)
class CostLimits:
    """Limits of one operation.

    mutation_fields, root_fields: fields at the top of a mutation, and of a query or subscription. depth: nested fields.
    selections: all fields, those of a fragment counted wherever it is spread. values: values in the answer, with full
    pages. Introspection has a budget of its own: `values`, or twice what tools ask for if that is more. default_page:
    rows of a page without a size. max_page: rows of a page whose size is a variable.
    """

    mutation_fields: int = 20
    root_fields: int = 50
    depth: int = 20
    selections: int = 2_000
    values: int = 100_000
    default_page: int = 50
    max_page: int = 500


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a selection set. fields: at its top. described: values of introspection, not included in `values`."""

    fields: int = 0
    selections: int = 0
    depth: int = 0
    values: int = 0
    described: int = 0

    def beside(self, other: Cost) -> Cost:
        """Return the cost of both selection sets together."""
        return Cost(
            self.fields + other.fields,
            self.selections + other.selections,
            max(self.depth, other.depth),
            self.values + other.values,
            self.described + other.described,
        )

    def inside(self, rows: int | Fraction) -> Cost:
        """Return the cost of a field that has this selection set for each of so many rows."""
        values, described = 1 + ceil(rows * self.values), ceil(rows * self.described)
        return Cost(1, 1 + self.selections, 1 + self.depth, values, described)

    def describing(self) -> Cost:
        """Return the cost of a field whose values are introspection."""
        return replace(self, values=1, described=self.values)


class TooDeep(Exception):
    """The selection sets are nested deeper than `MOST_LEVELS`."""


def cost_rule(limits: CostLimits) -> type[ASTValidationRule]:
    """Return the validation rule, for the `guards` of the engine."""

    class CostRule(ValidationRule):
        def enter_document(self, node: DocumentNode, *_: Any) -> None:
            for message, at in _complaints(node, self.context, limits):
                self.report_error(GraphQLError(message, at, extensions={"code": CODE}))

    return CostRule


def _complaints(
    document: DocumentNode, context: ValidationContext, limits: CostLimits
) -> Iterator[tuple[str, OperationDefinitionNode | FragmentDefinitionNode]]:
    """Yield a message for each limit that the document exceeds."""
    reckoning = _Reckoning(context, limits)
    for each in document.definitions:
        if not isinstance(each, OperationDefinitionNode | FragmentDefinitionNode):
            continue
        try:
            # A fragment that is never spread is still validated, so it has the same limits.
            cost = reckoning.of_definition(each)
        except TooDeep:
            yield f"Fields may stand {limits.depth} deep; these stand deeper, or fragments do.", each
            return
        if isinstance(each, OperationDefinitionNode):
            most, kind = limits.root_fields, each.operation.value
            if each.operation is OperationType.MUTATION:
                most = limits.mutation_fields
            if cost.fields > most:
                yield f"A {kind} may have {most} fields at its top; this one has {_number(cost.fields)}.", each
        described = limits.values
        if cost.described > described:  # the introspection of a large schema by tools may need more
            described = max(described, 2 * _asked_by_tools(context.schema, limits))
        for what, found, most in (
            ("ask for fields {} deep", cost.depth, limits.depth),
            ("select {} fields, those of a fragment wherever it is spread", cost.selections, limits.selections),
            ("ask for {} values, full pages reckoned", cost.values, limits.values),
            ("ask for {} values of the schema's description", cost.described, described),
        ):
            if found > most:
                yield f"An operation may {what.format(most)}; this is {_number(found)}.", each


def _asked_by_tools(schema: GraphQLSchema, limits: CostLimits) -> int:
    """Return the introspection cost of the query that tools send to read the schema."""
    query = standard_query()
    reckoning = _Reckoning(ValidationContext(schema, query, TypeInfo(schema), lambda _: None), limits)
    operations = [each for each in query.definitions if isinstance(each, OperationDefinitionNode)]
    return sum(reckoning.of_definition(each).described for each in operations)


def _number(found: int) -> str:
    # After a hundred doublings the number would have thirty digits.
    return str(found) if found < 10**9 else "more than a billion"


class _Reckoning:
    """Computes the costs in one document."""

    def __init__(self, context: ValidationContext, limits: CostLimits) -> None:
        self._context = context
        self._schema = context.schema
        self._limits = limits
        self._known: dict[tuple[str, bool], Cost] = {}
        self._open: set[str] = set()

    @cached_property
    def _lists(self) -> Lists:
        return Lists(self._schema)

    def of_definition(self, node: OperationDefinitionNode | FragmentDefinitionNode) -> Cost:
        if isinstance(node, FragmentDefinitionNode):
            cost = self._fragment(node.name.value, 0)
            # An introspection fragment is counted where it is spread; its values are not values of pages.
            return replace(cost, values=0) if node.type_condition.name.value.startswith("__") else cost
        return self._set(node.selection_set, self._schema.get_root_type(node.operation), 0)

    # of_all: in introspection, the selection set applies once to each part of the schema; see `introspection`.

    def _set(
        self, node: SelectionSetNode, parent: GraphQLNamedType | None, level: int, *, of_all: bool = False
    ) -> Cost:
        if level > MOST_LEVELS:
            raise TooDeep
        cost = Cost()
        for each in node.selections:
            cost = cost.beside(self._selection(each, parent, level, of_all=of_all))
        return cost

    def _selection(self, node: SelectionNode, parent: GraphQLNamedType | None, level: int, *, of_all: bool) -> Cost:
        match node:
            case FieldNode():
                return self._field(node, parent, level, of_all=of_all)
            case InlineFragmentNode():
                condition = node.type_condition
                inner = parent if condition is None else self._schema.get_type(condition.name.value)
                return self._set(node.selection_set, inner, level + 1, of_all=of_all)
            case FragmentSpreadNode():
                return self._fragment(node.name.value, level + 1, of_all=of_all)
            case _:
                return Cost()

    def _fragment(self, name: str, level: int, *, of_all: bool = False) -> Cost:
        known = self._known.get((name, of_all))
        if known is not None:
            return known
        fragment = self._context.get_fragment(name)
        if fragment is None or name in self._open:
            return Cost()  # other rules report unknown and circular fragments
        self._open.add(name)
        condition = self._schema.get_type(fragment.type_condition.name.value)
        cost = self._set(fragment.selection_set, condition, level, of_all=of_all)
        self._open.discard(name)
        self._known[name, of_all] = cost
        return cost

    def _field(self, node: FieldNode, parent: GraphQLNamedType | None, level: int, *, of_all: bool) -> Cost:
        if node.selection_set is None:
            return Cost(1, 1, 1, 1)
        name, owner = node.name.value, "" if parent is None else parent.name
        field = ROOTS.get(name) or getattr(parent, "fields", {}).get(name)
        inner_type = None if field is None else get_named_type(field.type)
        had = is_had(owner, name) and (of_all or name == "__schema")
        inner = self._set(node.selection_set, inner_type, level + 1, of_all=had)
        if name in ROOTS:
            return inner.inside(1).describing()
        if owner.startswith("__"):
            return inner.inside(self._lists.length(owner, name, of_all=of_all))
        return inner.inside(self._rows(node) if field is not None and "first" in field.args else 1)

    def _rows(self, node: FieldNode) -> int:
        """Return the most rows that the page can have. Execution refuses a page above the maximum."""
        for each in node.arguments or ():
            if each.name.value in ("first", "last"):
                most = self._limits.max_page
                return min(int(each.value.value), most) if isinstance(each.value, IntValueNode) else most
        return self._limits.default_page
