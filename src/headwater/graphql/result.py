"""The result of an operation, and the part of its errors that a client may read.

The type of an error decides. A `PublicError` is sent with its code and facts. A `GraphQLError` about an argument of the
document is sent as it is, with the code BAD_USER_INPUT. Any other error is masked and logged under an id.
"""

import logging
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
from graphql import ArgumentNode, ExecutionResult, GraphQLError, ValueNode

from headwater.errors import PublicError

logger = logging.getLogger(__name__)

FormattedError = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """One response, ready to be sent.

    executed: false if the document or the variables were refused, or the source of a subscription failed. Such a
    response has no `data` entry. data: may be a `msgspec.Raw` that holds ready JSON.

    A result may go to many sockets. It is encoded once.
    """

    executed: bool
    data: object = None
    errors: tuple[FormattedError, ...] = ()

    @cached_property
    def json(self) -> bytes:
        """The response in the specification's order: `errors` first, and `data` only if something was executed."""
        try:
            return msgspec.json.encode(self._response())
        except Exception as error:  # noqa: BLE001 - a user's scalar returned a value that JSON cannot represent
            return failed(error, executed=True).json

    @cached_property
    def errors_json(self) -> bytes:
        """The errors alone, as an `error` message of graphql-transport-ws carries them."""
        try:
            return msgspec.json.encode(self.errors)
        except Exception as error:  # noqa: BLE001 - the same for the extensions of an error
            return failed(error).errors_json

    def _response(self) -> dict[str, object]:
        response: dict[str, object] = {"errors": self.errors} if self.errors else {}
        if self.executed:
            response["data"] = self.data
        return response


def refused(errors: Iterable[GraphQLError], code: str) -> Result:
    """Return the result of a request that is refused before anything runs.

    The client caused it, so the errors are sent unmasked and nothing is logged.
    """
    return Result(executed=False, errors=tuple(_with_code(error, code) for error in errors))


def executed(raw: ExecutionResult) -> Result:
    """Return the result of an operation that graphql-core executed."""
    return Result(executed=True, data=raw.data, errors=tuple(_presentable(error) for error in raw.errors or ()))


def unresolved(errors: Iterable[GraphQLError]) -> Result:
    """Return the result of a subscription whose source could not be opened."""
    return Result(executed=False, errors=tuple(_presentable(error) for error in errors))


def failed(error: Exception, *, executed: bool = False) -> Result:
    """Return the result of an operation whose executor raised."""
    located = error if isinstance(error, GraphQLError) else GraphQLError(str(error), original_error=error)
    return Result(executed=executed, errors=(_presentable(located),))


def _presentable(error: GraphQLError) -> FormattedError:
    cause = _root_cause(error)
    if isinstance(cause, PublicError):
        return {**_place(error), "message": str(cause), "extensions": {"code": cause.code, **cause.facts}}
    if _is_about_an_argument(cause):
        return _with_code(error, "BAD_USER_INPUT")
    # The executor also raises GraphQLError for a value that its type cannot represent, and quotes the value. That is a
    # fault of the server, and the value may be confidential.
    return {**_place(error), **_masked(cause, error)}


def _is_about_an_argument(cause: Exception) -> bool:
    """True if the executor could not coerce an argument. Its error then points at the argument in the document."""
    return isinstance(cause, GraphQLError) and any(
        isinstance(node, ArgumentNode | ValueNode) for node in cause.nodes or ()
    )


def _masked(cause: Exception, error: GraphQLError) -> FormattedError:
    error_id = secrets.token_hex(8)
    logger.error("Internal error %s at %s", error_id, error.path, exc_info=(type(cause), cause, cause.__traceback__))
    return {"message": "Internal error", "extensions": {"code": "INTERNAL", "id": error_id}}


def _with_code(error: GraphQLError, code: str) -> FormattedError:
    return {**error.formatted, "extensions": {"code": code, **(error.extensions or {})}}


def _place(error: GraphQLError) -> FormattedError:
    return {key: value for key, value in error.formatted.items() if key in ("locations", "path")}


def _root_cause(error: GraphQLError) -> Exception:
    cause: Exception = error
    while isinstance(cause, GraphQLError) and cause.original_error is not None:
        cause = cause.original_error
    return cause
