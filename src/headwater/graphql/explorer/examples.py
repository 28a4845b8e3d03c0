"""The operations that the explorer opens as tabs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Example:
    """An operation that the explorer opens as a tab on the first visit.

        App(features, examples=[Example("Watch", "subscription { noteChanges { upserted { text } } }")])

    name: the title of the tab. query: a GraphQL document. variables: JSON text.
    """

    name: str
    query: str
    variables: str | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> list[Example]:
        """Read the `.graphql` files of a folder, in the order of their names.

        The first line of a file is a comment with the name of the example.
        """
        return [cls._from_text(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.graphql"))]

    @classmethod
    def _from_text(cls, text: str) -> Example:
        first, _, rest = text.partition("\n")
        return cls(first.lstrip("# "), rest)
