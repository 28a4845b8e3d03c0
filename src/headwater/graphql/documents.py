"""The cache of parsed and validated documents. Refusals are cached too."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from graphql import DocumentNode, GraphQLError, GraphQLSchema, OperationDefinitionNode, parse

from headwater.graphql.result import Result, refused
from headwater.graphql.validation import Guard, validate


@dataclass(frozen=True, slots=True)
class Document:
    """A valid document and its operations."""

    node: DocumentNode
    operations: tuple[OperationDefinitionNode, ...]

    def operation(self, name: str | None) -> OperationDefinitionNode | None:
        """Return the operation of that name, or the only one without a name; None if there is no such operation."""
        if name is None:
            return self.operations[0] if len(self.operations) == 1 else None
        return next((each for each in self.operations if each.name and each.name.value == name), None)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of documents.

    source_length: characters. tokens: tokens, comments included. documents: cache entries. characters: of all cached
    texts together; a parsed document takes up to 280 bytes for each, so the cache takes about 70 MB at worst. lines:
    of one document; graphql-core counts them from the start for the location of each error.
    """

    source_length: int
    tokens: int
    documents: int
    characters: int = 256 * 1024
    lines: int = 5_000


class Documents:
    """Maps a query text to its document, or to the result that refuses it. Evicts the least recently used."""

    def __init__(
        self,
        schema: GraphQLSchema,
        limits: Limits,
        *,
        guards: Sequence[Guard],
        hide_suggestions: bool,
    ) -> None:
        self._schema = schema
        self._limits = limits
        self._guards = tuple(guards)
        self._hide_suggestions = hide_suggestions
        self._known: OrderedDict[str, Document | Result] = OrderedDict()
        self._characters = 0

    def get(self, source: str) -> Document | Result:
        known = self._known.get(source)
        if known is not None:
            self._known.move_to_end(source)
            return known
        read = self._read(source)
        self._remember(source, read)
        return read

    def _read(self, source: str) -> Document | Result:
        try:
            node = self._parse(source)
        except GraphQLError as error:
            return refused([error], "GRAPHQL_PARSE_FAILED")
        errors = validate(self._schema, node, guards=self._guards, hide_suggestions=self._hide_suggestions)
        if errors:
            return refused(errors, "GRAPHQL_VALIDATION_FAILED")
        return Document(node, tuple(each for each in node.definitions if isinstance(each, OperationDefinitionNode)))

    def _parse(self, source: str) -> DocumentNode:
        if len(source) <= self._limits.source_length and _breaks(source) >= self._limits.lines:
            raise GraphQLError(f"A document may have {self._limits.lines} lines at most.")
        return parse(
            source,
            max_source_length=self._limits.source_length,
            max_tokens=self._limits.tokens,
            # graphql-core 3.3 takes `{ }` by default; the specification does not.
            allow_empty_selection_sets=False,
        )

    def _remember(self, source: str, read: Document | Result) -> None:
        if len(source) > self._limits.source_length:
            return  # Refused by its length, which is cheap to check again.
        self._known[source] = read
        self._characters += len(source)
        while len(self._known) > self._limits.documents or self._characters > self._limits.characters:
            forgotten, _ = self._known.popitem(last=False)
            self._characters -= len(forgotten)


def _breaks(source: str) -> int:
    return source.count("\n") + source.count("\r") - source.count("\r\n")
