"""How an operation gets its context."""

from collections.abc import Callable, Mapping

from starlette.requests import HTTPConnection

# Makes what resolvers see as `info.context`, anew for each operation and never shared. The second argument is the
# payload of a socket's connection_init, None over HTTP. A PublicError it raises refuses the caller: over HTTP with 401
# for the code UNAUTHENTICATED, else 403; over a socket it becomes the error of the operation.
ContextFactory = Callable[[HTTPConnection, Mapping[str, object] | None], object]
