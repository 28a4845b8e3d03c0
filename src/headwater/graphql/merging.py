"""Validation rules that replace graphql-core's where theirs is quadratic on short, hostile documents.

`FieldsMerge` decides the same question as `OverlappingFieldsCanBeMergedRule`, which compares each pair of fields of one
response name, and the selection sets below each pair. Here the fields of one response name are gathered first, and each
is compared with the first of them (the algorithm of Simon Adameit, used by Sangria). Its work is counted and bounded.

`LiteralValues` is `ValuesOfCorrectTypeRule` with a bound on what its errors quote: each of a hundred errors in one
input object quotes the whole object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from graphql import (
    ArgumentNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLNamedType,
    GraphQLOutputType,
    InlineFragmentNode,
    ListValueNode,
    Node,
    ObjectFieldNode,
    ObjectValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    ValidationContext,
    ValidationRule,
    ValuesOfCorrectTypeRule,
    get_named_type,
    is_composite_type,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
    is_object_type,
    print_ast,
)
from graphql.validation.validate import ValidationAbortedError

from headwater.graphql.cost import CODE

MOST_MERGED = 10_000
"""Selections and argument values that may be merged for one document. Those of a fragment count each time that it is
spread."""

MOST_QUOTED = 20_000
"""Characters that the errors about literals may have together."""

_MOST_NAME = 60


@dataclass(slots=True)  # not frozen: it is created ten thousand times, and a frozen one takes three times as long
class _Field:
    """A field of a merged selection set. within: the fragments that it stands in, to stop at circular ones."""

    node: FieldNode
    parent: GraphQLNamedType | None
    type: GraphQLOutputType | None
    within: frozenset[str]


class FieldsMerge(ValidationRule):
    """Reports fields of one response name that cannot be merged into one field of the response."""

    def enter_document(self, node: DocumentNode, *_: Any) -> None:
        merging = Merging(self.context)
        for error in merging.conflicts(node):
            self.report_error(error)


class Merging:
    """Merges the selections of one document. work: the number of selections and argument values merged so far."""

    def __init__(self, context: ValidationContext, most: int = MOST_MERGED) -> None:
        self.work = 0
        self._context = context
        self._most = most
        self._reached: set[str] = set()
        self._values: dict[int, int] = {}
        self._calls: dict[int, tuple[object, ...]] = {}

    def conflicts(self, document: DocumentNode) -> Iterator[GraphQLError]:
        """Yield an error for each response name whose fields cannot be merged.

        Raises:
            ValidationAbortedError: the document merges more than `most`.
        """
        fragments = []
        for each in document.definitions:
            if isinstance(each, OperationDefinitionNode):
                root = self._context.schema.get_root_type(each.operation)
                yield from self._of_set(each.selection_set, root, frozenset())
            elif isinstance(each, FragmentDefinitionNode):
                fragments.append(each)
        for each in fragments:
            # A fragment that an operation spreads has been merged as part of the operation.
            if each.name.value not in self._reached:
                condition = self._context.schema.get_type(each.type_condition.name.value)
                yield from self._of_set(each.selection_set, condition, frozenset((each.name.value,)))

    def _of_set(
        self, node: SelectionSetNode, parent: GraphQLNamedType | None, within: frozenset[str]
    ) -> Iterator[GraphQLError]:
        fields: list[_Field] = []
        self._collect(node, parent, within, fields, set())
        yield from self._conflicts(fields, shapes=True, calls=True)

    def _conflicts(self, fields: list[_Field], *, shapes: bool, calls: bool) -> Iterator[GraphQLError]:
        """Yield the conflicts among the fields of one selection set, and below them.

        shapes: compare the types of fields, which must agree even for different parents. calls: compare their names and
        arguments, which must agree if one object can have both parents.
        """
        for name, group in _by_response_name(fields).items():
            if len(group) == 1 and group[0].node.selection_set is None:
                continue  # no other field to compare it with, and nothing below it
            parents = _by_parent(group)
            problem = (next(filter(None, map(self._unlike_calls, parents)), None) if calls else None) or (
                _unlike_shapes(group) if shapes else None
            )
            if problem is not None:
                reason, first, other = problem
                yield _conflict(name, reason, first, other)
            elif len(parents) == 1:
                yield from self._conflicts(self._below(group), shapes=shapes, calls=calls)
            else:
                if shapes:
                    yield from self._conflicts(self._below(group), shapes=True, calls=False)
                for each in parents if calls else ():
                    yield from self._conflicts(self._below(each), shapes=False, calls=True)

    def _below(self, group: list[_Field]) -> list[_Field]:
        """Return the fields below all fields of a group, as one selection set."""
        found: list[_Field] = []
        spread: set[str] = set()
        for each in group:
            if each.node.selection_set is not None:
                parent = None if each.type is None else get_named_type(each.type)
                self._collect(each.node.selection_set, parent, each.within, found, spread)
        return found

    def _collect(
        self,
        node: SelectionSetNode,
        parent: GraphQLNamedType | None,
        within: frozenset[str],
        found: list[_Field],
        spread: set[str],
    ) -> None:
        schema = self._context.schema
        composite = parent if is_composite_type(parent) else None
        self._spend(len(node.selections))
        for each in node.selections:
            if isinstance(each, FieldNode):
                if each.arguments:
                    self._spend(self._size(each))
                definition = schema.get_field(composite, each.name.value) if composite else None
                found.append(_Field(each, parent, definition.type if definition else None, within))
            elif isinstance(each, InlineFragmentNode):
                condition = each.type_condition
                inner = parent if condition is None else schema.get_type(condition.name.value)
                self._collect(each.selection_set, inner, within, found, spread)
            elif isinstance(each, FragmentSpreadNode):
                self._spread(each.name.value, within, found, spread)

    def _spread(self, name: str, within: frozenset[str], found: list[_Field], spread: set[str]) -> None:
        fragment = self._context.get_fragment(name)
        if fragment is None or name in spread or name in within:
            return  # unknown or circular ones are reported by other rules
        spread.add(name)
        self._reached.add(name)
        condition = self._context.schema.get_type(fragment.type_condition.name.value)
        self._collect(fragment.selection_set, condition, within | {name}, found, spread)

    def _unlike_calls(self, group: list[_Field]) -> _Problem | None:
        first = group[0].node
        for each in group[1:]:
            if each.node.name.value != first.name.value:
                names = f"'{_short(first.name.value)}' and '{_short(each.node.name.value)}'"
                return f"{names} are different fields", first, each.node
            if self._call(each.node) != self._call(first):
                return "they have differing arguments", first, each.node
        return None

    def _call(self, node: FieldNode) -> tuple[object, ...]:
        """Return the arguments of a field in canonical order."""
        found = self._calls.get(id(node))
        if found is None:
            found = self._calls[id(node)] = _canonical(node.arguments or ())
        return found

    def _size(self, node: FieldNode) -> int:
        """Return the number of values in a field's arguments, those in lists and objects included."""
        found = self._values.get(id(node))
        if found is None:
            found = self._values[id(node)] = _count_values(node.arguments or ())
        return found

    def _spend(self, work: int) -> None:
        self.work += work
        if self.work > self._most:
            raise ValidationAbortedError(
                f"A document may have {self._most} selections and argument values, those of a fragment counted for each"
                " operation and each field that spreads it; this one has more.",
                extensions={"code": CODE},
            )


_Problem = tuple[str, FieldNode, FieldNode]
"""The reason of a conflict, and two fields that have it."""


def _by_response_name(fields: Iterable[_Field]) -> dict[str, list[_Field]]:
    groups: dict[str, list[_Field]] = {}
    for each in fields:
        groups.setdefault((each.node.alias or each.node.name).value, []).append(each)
    return groups


def _by_parent(group: list[_Field]) -> list[list[_Field]]:
    """Return groups of fields that one object can have: the fields of each object type, with those of all interfaces
    and unions."""
    first = group[0].parent
    if all(each.parent is first for each in group):
        return [group]
    objects: dict[str, list[_Field]] = {}
    others: list[_Field] = []
    for each in group:
        if each.parent is not None and is_object_type(each.parent):
            objects.setdefault(each.parent.name, []).append(each)
        else:
            others.append(each)
    return [others + each for each in objects.values()] or [others]


def _unlike_shapes(group: list[_Field]) -> _Problem | None:
    typed = [each for each in group if each.type is not None]
    for each in typed[1:]:
        one, other = typed[0].type, each.type
        if one is not other and _shape(one) != _shape(other):
            return f"they return conflicting types '{one}' and '{other}'", typed[0].node, each.node
    return None


def _shape(of: Any) -> tuple[object, ...]:
    """Return the list and non-null wrappers of a type and, for a scalar or an enum, the type itself."""
    wrappers: list[object] = []
    while is_list_type(of) or is_non_null_type(of):
        wrappers.append(type(of))
        of = of.of_type
    return (*wrappers, of if is_leaf_type(of) else None)


def _canonical(arguments: Iterable[ArgumentNode]) -> tuple[object, ...]:
    return tuple(sorted((each.name.value, _canonical_value(each.value)) for each in arguments))


def _canonical_value(node: Node) -> str:
    """Return the text of a value, with the fields of objects in canonical order."""
    if isinstance(node, ObjectValueNode):
        fields = sorted((each.name.value, _canonical_value(each.value)) for each in node.fields)
        return "{" + ",".join(f"{name}:{value}" for name, value in fields) + "}"
    if isinstance(node, ListValueNode):
        return "[" + ",".join(map(_canonical_value, node.values)) + "]"
    return print_ast(node)


def _count_values(arguments: Iterable[ArgumentNode]) -> int:
    count = 0
    waiting: list[Node] = list(arguments)
    while waiting:
        each = waiting.pop()
        if isinstance(each, ArgumentNode | ObjectFieldNode):
            waiting.append(each.value)
            continue
        count += 1
        if isinstance(each, ListValueNode):
            waiting.extend(each.values)
        elif isinstance(each, ObjectValueNode):
            waiting.extend(each.fields)
    return count


def _conflict(name: str, reason: str, first: FieldNode, other: FieldNode) -> GraphQLError:
    return GraphQLError(
        f"Fields '{_short(name)}' conflict because {reason}."
        " Use different aliases on the fields to fetch both if this was intentional.",
        [first, other],
    )


def _short(name: str) -> str:
    return name if len(name) <= _MOST_NAME else name[:_MOST_NAME] + "..."


class LiteralValues(ValuesOfCorrectTypeRule):
    """`ValuesOfCorrectTypeRule`, stopped when its errors have quoted `MOST_QUOTED` characters."""

    def __init__(self, context: ValidationContext) -> None:
        super().__init__(context)
        self._quoted = 0

    def report_error(self, error: GraphQLError) -> None:
        super().report_error(error)
        self._quoted += len(error.message)
        if self._quoted > MOST_QUOTED:
            raise ValidationAbortedError("More values are wrong than can be reported. Validation aborted.")
