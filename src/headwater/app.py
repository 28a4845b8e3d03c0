"""The app: a list of features, checked, and the GraphQL schema that they make. Nothing is opened at import."""

from __future__ import annotations

from collections.abc import Sequence

import strawberry

from headwater.domain.feature import Domain, Feature
from headwater.graphql.explorer import Example
from headwater.graphql.schema import schema_of


class App:
    """What `headwater serve --app module:app` runs: `app = App(features=[users, accounts])`.

    examples: operations that the explorer opens with.

    Raises:
        DefinitionError: the features' declarations are wrong; the sentence names the class and the field.
    """

    def __init__(self, features: Sequence[Feature], *, examples: Sequence[Example] = ()) -> None:
        self.domain = Domain(features)
        self.schema: strawberry.Schema = schema_of(self.domain)
        self.examples = tuple(examples)
