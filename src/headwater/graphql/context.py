"""The type of the function that makes the context of an operation."""

from collections.abc import Callable, Mapping

from starlette.requests import HTTPConnection

# Returns a new `info.context` for each operation. The second argument is the payload of a socket's connection_init,
# None over HTTP. A PublicError refuses the request: over HTTP with status 401 for the code UNAUTHENTICATED, else 403;
# over a socket it becomes the error of the operation.
ContextFactory = Callable[[HTTPConnection, Mapping[str, object] | None], object]
