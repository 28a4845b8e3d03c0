"""What an operation came to, and which of its errors the client may read."""

import logging
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any

import msgspec
from graphql import ExecutionResult, GraphQLError

from headwater.errors import PublicError

logger = logging.getLogger(__name__)

FormattedError = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """One response, ready to be sent.

    `executed` is false when nothing ran to a result: the document or the variables were refused, or the source of a
    subscription failed. Such a response has no `data` entry. `data` may be a `msgspec.Raw` that holds ready JSON.
    A result may go to many sockets: it is encoded once.
    """

    executed: bool
    data: object = None
    errors: tuple[FormattedError, ...] = ()

    @cached_property
    def json(self) -> bytes:
        """The response as the specification writes it: `errors` first, and `data` only if something was executed."""
        try:
            return msgspec.json.encode(self._response())
        except Exception as error:  # noqa: BLE001 - a user's scalar gave what JSON cannot carry
            return failed(error, executed=True).json

    @cached_property
    def errors_json(self) -> bytes:
        """The errors alone, as an `error` message of graphql-transport-ws carries them."""
        try:
            return msgspec.json.encode(self.errors)
        except Exception as error:  # noqa: BLE001 - the same for a resolver's extensions
            return failed(error).errors_json

    def _response(self) -> dict[str, object]:
        response: dict[str, object] = {"errors": self.errors} if self.errors else {}
        if self.executed:
            response["data"] = self.data
        return response


def refused(errors: Iterable[GraphQLError], code: str) -> Result:
    """A request that is refused before anything runs: the client's doing, so it is told all and nothing is logged."""
    return Result(executed=False, errors=tuple(_with_code(error, code) for error in errors))


def executed(raw: ExecutionResult) -> Result:
    """What graphql-core made of an operation."""
    return Result(executed=True, data=raw.data, errors=tuple(_presentable(error) for error in raw.errors or ()))


def unresolved(errors: Iterable[GraphQLError]) -> Result:
    """A subscription whose source could not be had."""
    return Result(executed=False, errors=tuple(_presentable(error) for error in errors))


def failed(error: Exception, *, executed: bool = False) -> Result:
    """An exception that left the executor altogether."""
    located = error if isinstance(error, GraphQLError) else GraphQLError(str(error), original_error=error)
    return Result(executed=executed, errors=(_presentable(located),))


def _presentable(error: GraphQLError) -> FormattedError:
    """Public errors with their code, client errors as they are, and every other error masked."""
    cause = _root_cause(error)
    if isinstance(cause, PublicError):
        return {**_place(error), "message": str(cause), "extensions": {"code": cause.code, **cause.facts}}
    if not isinstance(cause, GraphQLError) or _passed_through(cause, "complete_value"):
        # The executor raises GraphQLError too, for a value that its type cannot carry ("Int cannot represent ..."), and
        # quotes the value. That is a fault of ours, not the client's, and the value is not for its eyes.
        return {**_place(error), **_masked(cause, error)}
    if _passed_through(cause, "get_argument_values"):
        return _with_code(error, "BAD_USER_INPUT")
    return dict(error.formatted)


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


def _passed_through(error: Exception, function: str) -> bool:
    """Whether the error came up through this function of the executor. A field catches its own: no parent shows."""
    return any(code == function for code in _code_names(error.__traceback__))


def _code_names(traceback: TracebackType | None) -> Iterable[str]:
    while traceback is not None:
        yield traceback.tb_frame.f_code.co_name
        traceback = traceback.tb_next
