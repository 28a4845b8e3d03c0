"""The app: a checked list of features, and the GraphQL schema made from them. Importing an app opens nothing."""

from __future__ import annotations

from collections.abc import Sequence

import strawberry

from headwater.domain.feature import Domain, Feature
from headwater.graphql.explorer import Example
from headwater.graphql.schema import schema_of


class App:
    """An app, as `headwater serve --app module:app` runs it: `app = App(features=[users, accounts])`.

    examples: the operations that the explorer shows first.

    Raises:
        DefinitionError: a declaration of a feature is wrong; the message names the class and the field.
    """

    def __init__(self, features: Sequence[Feature], *, examples: Sequence[Example] = ()) -> None:
        self.domain = Domain(features)
        self.schema: strawberry.Schema = schema_of(self.domain)
        self.examples = tuple(examples)
