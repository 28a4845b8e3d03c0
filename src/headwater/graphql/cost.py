"""The cost of a document, estimated in one pass before any other validation.

A chain of fragments that each spread the next one twice doubles in size with each link. So the cost of a fragment is
computed once, and costs are multiplied rather than counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import ceil

from graphql import (
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
    get_named_type,
)

from headwater.graphql.introspection import ROOTS, ListLengths, has_one_owner, standard_query

CODE = "OPERATION_TOO_EXPENSIVE"

MOST_LEVELS = 100
"""Nested selection sets that are followed at most, counting those of fragments. It is more than any allowed depth, and
few enough for Python's stack."""


@dataclass(frozen=True)
class CostLimits:
    """Limits of one operation.

    mutation_fields, root_fields: fields at the top of a mutation, and of a query or subscription. depth: nested fields.
    selections: all fields, those of a fragment counted at each spread. values: values in the response, with full pages.
    The limit of introspection is separate: `values`, or twice the cost of the query of tools if that is more.
    default_page: rows of a page without a size. max_page: rows of a page whose size is a variable.
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

    @classmethod
    def together(cls, costs: Sequence[Cost]) -> Cost:
        """Return the cost of selections that are in one selection set."""
        return cls(
            sum(each.fields for each in costs),
            sum(each.selections for each in costs),
            max((each.depth for each in costs), default=0),
            sum(each.values for each in costs),
            sum(each.described for each in costs),
        )

    def inside(self, rows: int | Fraction) -> Cost:
        """Return the cost of a field that has this selection set for each of so many rows."""
        values, described = 1 + ceil(rows * self.values), ceil(rows * self.described)
        return Cost(1, 1 + self.selections, 1 + self.depth, values, described)

    def describing(self) -> Cost:
        """Return the cost of a field whose values are introspection."""
        return replace(self, values=1, described=self.values)


_LEAF = Cost(fields=1, selections=1, depth=1, values=1)
_NOTHING = Cost()


class TooDeep(Exception):
    """The selection sets are nested deeper than `MOST_LEVELS`."""


def cost_guard(limits: CostLimits) -> Callable[[ValidationContext], Iterator[GraphQLError]]:
    """Return a guard for the engine: it yields an error for each limit that a document exceeds."""

    def guard(context: ValidationContext) -> Iterator[GraphQLError]:
        for message, at in _exceeded(context, limits):
            yield GraphQLError(message, at, extensions={"code": CODE})

    return guard


def _exceeded(
    context: ValidationContext, limits: CostLimits
) -> Iterator[tuple[str, OperationDefinitionNode | FragmentDefinitionNode]]:
    """Yield a message for each limit that the document exceeds, and the definition that exceeds it."""
    costs = Costs(context, limits)
    for each in context.document.definitions:
        if not isinstance(each, OperationDefinitionNode | FragmentDefinitionNode):
            continue
        try:
            # A fragment that is never spread is still validated, so it has the same limits.
            cost = costs.of_definition(each)
        except TooDeep:
            yield f"An operation is limited to {limits.depth} levels of nested fields; this one has more.", each
            return
        if isinstance(each, OperationDefinitionNode):
            most, kind = limits.root_fields, each.operation.value
            if each.operation is OperationType.MUTATION:
                most = limits.mutation_fields
            if cost.fields > most:
                yield (
                    f"A {kind} is limited to {most} fields at its top level; this one has {_number(cost.fields)}.",
                    each,
                )
        described = limits.values
        if cost.described > described:  # the introspection of a large schema by tools may need more
            described = max(described, 2 * _described_to_tools(context.schema, limits))
        for what, count, most in (
            ("levels of nested fields", cost.depth, limits.depth),
            ("fields, those of a fragment counted at each spread", cost.selections, limits.selections),
            ("values, with every page counted as full", cost.values, limits.values),
            ("values of introspection", cost.described, described),
        ):
            if count > most:
                yield f"An operation is limited to {most} {what}; this one has {_number(count)}.", each


def _described_to_tools(schema: GraphQLSchema, limits: CostLimits) -> int:
    """Return the introspection cost of the query that tools send to read the schema."""
    query = standard_query()
    costs = Costs(ValidationContext(schema, query, TypeInfo(schema), lambda _: None), limits)
    operations = [each for each in query.definitions if isinstance(each, OperationDefinitionNode)]
    return sum(costs.of_definition(each).described for each in operations)


def _bounded(digits: str, most: int) -> int:
    """Return the number of a literal, from 0 to `most`. Execution refuses a page of another size.

    A negative number must not reduce the cost of the rest, and Python converts no literal of over 4300 digits.
    """
    if digits.startswith("-"):
        return 0
    return most if len(digits) > len(str(most)) else min(int(digits), most)


def _number(found: int) -> str:
    # After a hundred doublings the number would have thirty digits.
    return str(found) if found < 10**9 else "more than a billion"


class Costs:
    """Computes the costs of the definitions of one document. Each fragment is computed once."""

    def __init__(self, context: ValidationContext, limits: CostLimits) -> None:
        self._context = context
        self._schema = context.schema
        self._limits = limits
        self._known: dict[tuple[str, bool], Cost] = {}
        self._open: set[str] = set()

    @cached_property
    def _lists(self) -> ListLengths:
        return ListLengths(self._schema)

    def of_definition(self, node: OperationDefinitionNode | FragmentDefinitionNode) -> Cost:
        """Return the cost of an operation or a fragment.

        Raises:
            TooDeep: its selection sets, or those of the fragments that it spreads, are nested too deep.
        """
        if isinstance(node, FragmentDefinitionNode):
            cost = self._fragment(node.name.value, 0)
            # An introspection fragment is counted where it is spread; its values are not values of pages.
            return replace(cost, values=0) if node.type_condition.name.value.startswith("__") else cost
        return self._set(node.selection_set, self._schema.get_root_type(node.operation), 0)

    # each_once: in introspection, the selection set applies once to each part of the schema; see `introspection`.

    def _set(
        self, node: SelectionSetNode, parent: GraphQLNamedType | None, level: int, *, each_once: bool = False
    ) -> Cost:
        if level > MOST_LEVELS:
            raise TooDeep
        costs = [self._selection(each, parent, level, each_once=each_once) for each in node.selections]
        return Cost.together(costs)

    def _selection(self, node: SelectionNode, parent: GraphQLNamedType | None, level: int, *, each_once: bool) -> Cost:
        match node:
            case FieldNode():
                return self._field(node, parent, level, each_once=each_once)
            case InlineFragmentNode():
                condition = node.type_condition
                inner = parent if condition is None else self._schema.get_type(condition.name.value)
                return self._set(node.selection_set, inner, level + 1, each_once=each_once)
            case FragmentSpreadNode():
                return self._fragment(node.name.value, level + 1, each_once=each_once)
            case _:
                return _NOTHING

    def _fragment(self, name: str, level: int, *, each_once: bool = False) -> Cost:
        known = self._known.get((name, each_once))
        if known is not None:
            return known
        fragment = self._context.get_fragment(name)
        if fragment is None or name in self._open:
            return _NOTHING  # other rules report unknown and circular fragments
        self._open.add(name)
        condition = self._schema.get_type(fragment.type_condition.name.value)
        cost = self._set(fragment.selection_set, condition, level, each_once=each_once)
        self._open.discard(name)
        self._known[name, each_once] = cost
        return cost

    def _field(self, node: FieldNode, parent: GraphQLNamedType | None, level: int, *, each_once: bool) -> Cost:
        if node.selection_set is None:
            return _LEAF
        name, owner = node.name.value, "" if parent is None else parent.name
        field = ROOTS.get(name) or getattr(parent, "fields", {}).get(name)
        inner_type = None if field is None else get_named_type(field.type)
        once = has_one_owner(owner, name) and (each_once or name == "__schema")
        inner = self._set(node.selection_set, inner_type, level + 1, each_once=once)
        if name in ROOTS:
            return inner.inside(1).describing()
        if owner.startswith("__"):
            return inner.inside(self._lists.length(owner, name, each_once=each_once))
        return inner.inside(self._rows(node) if field is not None and "first" in field.args else 1)

    def _rows(self, node: FieldNode) -> int:
        """Return the most rows that the page can have. Execution refuses a page above the maximum."""
        for each in node.arguments or ():
            if each.name.value in ("first", "last"):
                most = self._limits.max_page
                return _bounded(each.value.value, most) if isinstance(each.value, IntValueNode) else most
        return self._limits.default_page
