"""The app: a checked list of features, and the GraphQL schema made from them. Importing an app opens nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from headwater.domain.feature import Domain, Feature
from headwater.graphql.explorer.examples import Example

if TYPE_CHECKING:
    import strawberry


class App:
    """An app, as `headwater serve --app module:app` runs it: `app = App(features=[users, accounts])`.

    examples: the operations that the explorer shows first.

    Raises:
        DefinitionError: a declaration of a feature is wrong; the message names the class and the field.
    """

    def __init__(self, features: Sequence[Feature], *, examples: Sequence[Example] = ()) -> None:
        self.domain = Domain(features)
        self.examples = tuple(examples)

    @cached_property
    def schema(self) -> strawberry.Schema:
        """The GraphQL schema, which the first use makes."""
        from headwater.graphql.schema import schema_of  # most commands run without GraphQL

        return schema_of(self.domain)
