"""The values that a client gave for an input object."""

from __future__ import annotations

from typing import Any

import strawberry
from strawberry.types.base import StrawberryObjectDefinition
from strawberry.utils.str_converters import to_camel_case

from headwater.errors import BadUserInput


def given_values(given: object | None, argument: str) -> dict[str, Any]:
    """Return the entries of an input object that the client gave, by their Python names; none without an object.

    Raises:
        BadUserInput: an entry is null. A client sends a null for a variable that it did not set: taken as "no filter"
            it would select everything.
    """
    if given is None:
        return {}
    values = {name: value for name, value in vars(given).items() if value is not strawberry.UNSET}
    for name, value in values.items():
        if value is None:
            raise BadUserInput(f"{argument}: {_graphql_name(given, name)} is null; leave it out.")
    return values


def _graphql_name(given: object, name: str) -> str:
    definition: StrawberryObjectDefinition = given.__strawberry_definition__  # type: ignore[attr-defined]  # an input
    field = next(each for each in definition.fields if each.python_name == name)
    return field.graphql_name or to_camel_case(name)
