"""A GraphQL request: one operation, read from decoded JSON in the same way on every transport."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import msgspec

from headwater.errors import PublicError


class BadRequest(PublicError):
    """The request is not a well-formed GraphQL request."""

    code = "BAD_REQUEST"


@dataclass(frozen=True, slots=True)
class GraphQLRequest:
    """One operation to run. Unknown `extensions` are accepted and ignored, as the specification asks."""

    query: str
    operation_name: str | None = None
    variables: Mapping[str, object] = field(default_factory=dict)
    extensions: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read decoded JSON; raises `BadRequest` naming the entry that is wrong."""
        if isinstance(value, list):
            raise BadRequest("Batches are not supported: send one operation in each request.")
        if not isinstance(value, dict):
            raise BadRequest("The request must be a JSON object.")
        return cls(
            query=_query(value),
            operation_name=_operation_name(value),
            variables=_object_or_null(value, "variables"),
            extensions=_object_or_null(value, "extensions"),
        )


def decode_json(text: bytes | str, name: str) -> object:
    """Decode JSON of a client. Raises `BadRequest` with `name` in its message."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        # msgspec raises RecursionError for JSON nested thousands deep.
        raise BadRequest(f"The {name} must be valid JSON.") from error


def _query(value: Mapping[str, object]) -> str:
    if "query" not in value:
        raise BadRequest('The request must have a "query".')
    query = value["query"]
    if not isinstance(query, str):
        raise BadRequest('"query" must be a string.')
    return query


def _operation_name(value: Mapping[str, object]) -> str | None:
    name = value.get("operationName")
    if name is None or isinstance(name, str):
        return name
    raise BadRequest('"operationName" must be a string or null.')


def _object_or_null(value: Mapping[str, object], name: str) -> Mapping[str, object]:
    entry = value.get(name)
    if entry is None:
        return {}
    if isinstance(entry, dict):
        return entry
    raise BadRequest(f'"{name}" must be an object or null.')
