"""Validation of documents: the rules of graphql-core, in half of the time that `graphql.validate` takes.

A hostile document within the limits has thousands of nodes, and it is validated on the event loop. So:

- Results are kept by the identity of a node. graphql-core hashes a node with all that is below it.
- Names are not visited: no rule looks at them, and they are half of the nodes.
- Guards run before the visit, because they need none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from graphql import (
    ASTValidationRule,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    GraphQLError,
    GraphQLSchema,
    InlineFragmentNode,
    OperationDefinitionNode,
    OverlappingFieldsCanBeMergedRule,
    ParallelVisitor,
    TypeInfo,
    TypeInfoVisitor,
    ValidationContext,
    ValuesOfCorrectTypeRule,
    Visitor,
    VisitorAction,
    specified_rules,
    visit,
)
from graphql.language.ast import QUERY_DOCUMENT_KEYS
from graphql.pyutils import RefMap
from graphql.type import assert_valid_schema
from graphql.validation.validate import FragmentNestingVisitor, ValidationAbortedError
from graphql.validation.validation_context import VariableUsage, VariableUsageVisitor
from strawberry.schema.validation_rules.maybe_null import MaybeNullValidationRule
from strawberry.schema.validation_rules.one_of import OneOfInputValidationRule

from headwater.graphql.merging import FieldsMerge, LiteralValues

Guard = Callable[[ValidationContext], Iterable[GraphQLError]]
"""Bounds the size of a document. If a guard returns errors, no rule runs."""

MOST_ERRORS = 100
"""Errors of one document. Validation stops at the next one."""

_REPLACED = (OverlappingFieldsCanBeMergedRule, ValuesOfCorrectTypeRule)

# What Strawberry itself validates with (strawberry.schema.schema.validate_document, which cannot hide suggestions),
# with linear rules for two of them. `FieldsMerge` comes first: it bounds what others do again for each operation.
RULES: tuple[type[ASTValidationRule], ...] = (
    FieldsMerge,
    LiteralValues,
    *(each for each in specified_rules if each not in _REPLACED),
    MaybeNullValidationRule,
    OneOfInputValidationRule,
)

_UNVISITED = ("description", "name", "alias")

_VISITED = {kind: tuple(key for key in keys if key not in _UNVISITED) for kind, keys in QUERY_DOCUMENT_KEYS.items()} | {
    "variable": ()
}


def validate(
    schema: GraphQLSchema,
    document: DocumentNode,
    rules: Sequence[type[ASTValidationRule]] = RULES,
    *,
    guards: Sequence[Guard] = (),
    hide_suggestions: bool = False,
) -> list[GraphQLError]:
    """Return the errors of a document, at most `MOST_ERRORS` and one that says that there are more."""
    assert_valid_schema(schema)
    errors: list[GraphQLError] = []

    def report(error: GraphQLError) -> None:
        if len(errors) >= MOST_ERRORS:
            raise ValidationAbortedError("Too many validation errors, error limit reached. Validation aborted.")
        errors.append(error)

    types = TypeInfo(schema)
    context = _Context(schema, document, types, report, hide_suggestions, allow_empty_selection_sets=False)
    try:
        for guard in guards:
            for error in guard(context):
                report(error)
        if not errors:
            visit(document, TypeInfoVisitor(types, ParallelVisitor(_visitors(context, rules))), _VISITED)
    except ValidationAbortedError as error:
        # The result is cached: without these two lines it would hold the frames of the validation.
        error.__context__ = None
        errors.append(error.with_traceback(None))
    except RecursionError:
        errors.append(ValidationAbortedError("Validation aborted."))
    return errors


def _visitors(context: ValidationContext, rules: Iterable[type[ASTValidationRule]]) -> list[Visitor]:
    visitors: list[Visitor] = [rule(context) for rule in rules]
    definitions = context.document.definitions
    fragments = {each.name.value: each for each in definitions if isinstance(each, FragmentDefinitionNode)}
    if fragments:
        visitors.insert(0, FragmentNestingVisitor(fragments))
    return visitors


class _Context(ValidationContext):
    """A context that keeps its results by the identity of a node."""

    def __init__(
        self,
        schema: GraphQLSchema,
        document: DocumentNode,
        types: TypeInfo,
        report: Callable[[GraphQLError], None],
        hide_suggestions: bool,
        allow_empty_selection_sets: bool,
    ) -> None:
        super().__init__(schema, document, types, report, hide_suggestions, allow_empty_selection_sets)
        self._types = types
        by_identity: Callable[[], Any] = RefMap  # graphql-core has dicts here
        self._fragment_spreads = by_identity()
        self._variable_usages = by_identity()
        self._recursive_variable_usages = by_identity()

    def get_variable_usages(self, node: OperationDefinitionNode | FragmentDefinitionNode) -> list[VariableUsage]:
        """Return the variables of one definition, without those of the fragments that it spreads."""
        known: list[VariableUsage] | None = self._variable_usages.get(node)
        if known is None:
            fragment = node if isinstance(node, FragmentDefinitionNode) else None
            usages = _VariableUsages(self._types, fragment)
            visit(node, TypeInfoVisitor(self._types, usages), _VISITED)
            known = self._variable_usages[node] = usages.usages
        return known


class _VariableUsages(VariableUsageVisitor):
    """Skips each selection in whose text there is no `$`, and so no variable."""

    def enter_field(self, node: FieldNode, *_: object) -> VisitorAction:
        return None if _has_dollar(node) else self.SKIP

    def enter_inline_fragment(self, node: InlineFragmentNode, *_: object) -> VisitorAction:
        return None if _has_dollar(node) else self.SKIP


def _has_dollar(node: FieldNode | InlineFragmentNode) -> bool:
    at = node.loc
    return at is None or at.source.body.find("$", at.start, at.end) >= 0
