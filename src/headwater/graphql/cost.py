"""What a document may cost, judged before anything else of it is: one pass, each fragment reckoned once.

Chains of fragments that spread the next one twice double with each link. So what a fragment costs is remembered, and
numbers are multiplied, not counted up.
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
"""Selection sets inside one another, those of fragments counted: deeper than any depth that is allowed, and so shallow
that Python's own stack is never the bound."""


@dataclass(frozen=True)
class CostLimits:
    """How much one operation may ask for.

    mutation_fields, root_fields: fields at the top of a mutation, and of a query or subscription. depth: fields inside
    one another. selections: fields in all, those of a fragment wherever it is spread. values: of the answer, a page
    reckoned as full; beside that, as many of the schema's description, or twice what tools ask for where that is more.
    default_page, max_page: rows of a page that is asked for without a size, or with one that only the variables have.
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
    """Of a selection set. fields: at its top. described: values of introspection, which are not among `values`."""

    fields: int = 0
    selections: int = 0
    depth: int = 0
    values: int = 0
    described: int = 0

    def beside(self, other: Cost) -> Cost:
        """Of both selection sets in one."""
        return Cost(
            self.fields + other.fields,
            self.selections + other.selections,
            max(self.depth, other.depth),
            self.values + other.values,
            self.described + other.described,
        )

    def inside(self, rows: int | Fraction) -> Cost:
        """Of a field that has the selection set for each of so many rows."""
        values, described = 1 + ceil(rows * self.values), ceil(rows * self.described)
        return Cost(1, 1 + self.selections, 1 + self.depth, values, described)

    def describing(self) -> Cost:
        """Of a field whose values are those of introspection."""
        return replace(self, values=1, described=self.values)


class TooDeep(Exception):
    """More levels than are followed."""


def cost_rule(limits: CostLimits) -> type[ASTValidationRule]:
    """The rule, to be one of the engine's `guards`."""

    class CostRule(ValidationRule):
        def enter_document(self, node: DocumentNode, *_: Any) -> None:
            for message, at in _complaints(node, self.context, limits):
                self.report_error(GraphQLError(message, at, extensions={"code": CODE}))

    return CostRule


def _complaints(
    document: DocumentNode, context: ValidationContext, limits: CostLimits
) -> Iterator[tuple[str, OperationDefinitionNode | FragmentDefinitionNode]]:
    """What of a document is too much, in words."""
    reckoning = _Reckoning(context, limits)
    for each in document.definitions:
        if not isinstance(each, OperationDefinitionNode | FragmentDefinitionNode):
            continue
        try:
            # A fragment that nothing spreads runs never, but is validated: it may cost no more than others.
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
        if cost.described > described:  # of a large schema tools ask for more than that
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
    """What tools ask for to learn a schema, reckoned as any introspection is."""
    query = standard_query()
    reckoning = _Reckoning(ValidationContext(schema, query, TypeInfo(schema), lambda _: None), limits)
    operations = [each for each in query.definitions if isinstance(each, OperationDefinitionNode)]
    return sum(reckoning.of_definition(each).described for each in operations)


def _number(found: int) -> str:
    # Doubled a hundred times it is longer than anyone reads.
    return str(found) if found < 10**9 else "more than a billion"


class _Reckoning:
    """Reckons one document."""

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
            # How often an introspection asks for it is known where it is spread, and is not what pages give.
            return replace(cost, values=0) if node.type_condition.name.value.startswith("__") else cost
        return self._set(node.selection_set, self._schema.get_root_type(node.operation), 0)

    # of_all: in introspection, that the selection set is asked once of each part of the schema; see `introspection`.

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
            return Cost()  # unknown, or a circle: another rule says so
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
        """How many rows the page may have: what is more than allowed is refused when it runs."""
        for each in node.arguments or ():
            if each.name.value in ("first", "last"):
                most = self._limits.max_page
                return min(int(each.value.value), most) if isinstance(each.value, IntValueNode) else most
        return self._limits.default_page
