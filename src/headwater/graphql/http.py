"""GraphQL over HTTP: POST, and GET for queries, in both of the specification's media types."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

import msgspec
from graphql import OperationType
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from headwater.errors import PublicError
from headwater.graphql.context import ContextFactory
from headwater.graphql.engine import Engine
from headwater.graphql.media import preferred
from headwater.graphql.request import BadRequest, GraphQLRequest, decode_json
from headwater.graphql.result import Result, failed
from headwater.ids import new_id
from headwater.logs import handling

JSON = "application/json"
GRAPHQL = "application/graphql-response+json"
HTML = "text/html"

# A page of another site cannot send these headers without a CORS preflight, so their presence proves the same site.
PREFLIGHT_HEADERS = ("x-headwater", "graphql-require-preflight", "apollo-require-preflight")
GET_PARAMETERS = ("query", "operationName", "variables", "extensions")

Explorer = Callable[[Request], Awaitable[Response]]


class HTTPRefusal(Exception):
    """The request is refused with an HTTP status before it is read as GraphQL."""

    def __init__(self, status: HTTPStatus, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})


class GraphQLHTTP:
    """The endpoint, an ASGI application: `Route("/graphql", GraphQLHTTP(engine, context))`.

    max_body: bytes of the body. body_seconds: timeout for the whole body. explorer: answers a GET that prefers HTML and
    has no query.
    """

    def __init__(
        self,
        engine: Engine,
        context: ContextFactory,
        *,
        max_body: int = 1024 * 1024,
        body_seconds: float = 30.0,
        explorer: Explorer | None = None,
    ) -> None:
        self._engine = engine
        self._context = context
        self._max_body = max_body
        self._body_seconds = body_seconds
        self._explorer = explorer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._respond(request)
        except ClientDisconnect:
            return  # The client left while it sent its body.
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        accept = ", ".join(request.headers.getlist("accept"))
        if self._explorer is not None and _wants_page(request, accept):
            return await self._explorer(request)
        media_type = preferred(accept, (JSON, GRAPHQL))
        try:
            return await self._answer(request, media_type)
        except HTTPRefusal as refusal:
            return _error(refusal.status, refusal.code, str(refusal), media_type, refusal.headers)
        except BadRequest as error:
            return _error(HTTPStatus.BAD_REQUEST, error.code, str(error), media_type)

    async def _answer(self, request: Request, media_type: str | None) -> Response:
        if media_type is None:
            raise HTTPRefusal(HTTPStatus.NOT_ACCEPTABLE, "NOT_ACCEPTABLE", f"Available: {JSON} and {GRAPHQL}.")
        _require_method(request)
        try:
            context = self._context(request, None)
        except PublicError as error:
            raise _not_admitted(error) from error
        except Exception as error:  # noqa: BLE001 - the user's code: masked like a resolver's fault
            return _json(HTTPStatus.INTERNAL_SERVER_ERROR, failed(error).json, media_type)
        operation = await self._read(request)
        self._require_runnable(request, operation)
        with handling(new_id()):
            result = await self._engine.execute(operation, context)
        return _json(_status(result, media_type), result.json, media_type)

    async def _read(self, request: Request) -> GraphQLRequest:
        if request.method == "GET":
            return GraphQLRequest.from_json(_parameters(request))
        return GraphQLRequest.from_json(decode_json(await self._body(request), "body"))

    async def _body(self, request: Request) -> bytes:
        """Read the body. Stops as soon as it is too large or too slow; the rest is not read."""
        if int(request.headers.get("content-length", "0")) > self._max_body:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self._max_body:
                        raise self._too_large()
        except TimeoutError as error:
            message = f"The body must be complete within {self._body_seconds:g} seconds."
            raise _unread(HTTPStatus.REQUEST_TIMEOUT, "BODY_TOO_SLOW", message) from error
        return bytes(body)

    def _too_large(self) -> HTTPRefusal:
        message = f"The body may have {self._max_body} bytes at most."
        return _unread(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "BODY_TOO_LARGE", message)

    def _require_runnable(self, request: Request, operation: GraphQLRequest) -> None:
        kind = self._engine.kind(operation)
        if kind is OperationType.MUTATION and request.method == "GET":
            message = "Mutations are sent by POST."
            raise HTTPRefusal(HTTPStatus.METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", message, {"allow": "POST"})
        if kind is OperationType.SUBSCRIPTION:
            message = "Subscriptions run over a WebSocket at this address, sub-protocol graphql-transport-ws."
            raise HTTPRefusal(HTTPStatus.BAD_REQUEST, "SUBSCRIPTION_NEEDS_WEBSOCKET", message)


def _unread(status: HTTPStatus, code: str, message: str) -> HTTPRefusal:
    """Return a refusal that closes the connection, which still carries the unread rest of the body."""
    return HTTPRefusal(status, code, message, {"connection": "close"})


def _wants_page(request: Request, accept: str) -> bool:
    """True for a GET without a query that prefers HTML. `*/*` prefers JSON, which is offered first."""
    return (
        request.method == "GET"
        and "query" not in request.query_params
        and preferred(accept, (JSON, GRAPHQL, HTML)) == HTML
    )


def _require_method(request: Request) -> None:
    """Refuse other methods than GET and POST, and requests that a page of another site may have sent."""
    match request.method:
        case "GET":
            _require_same_site(request)
        case "POST":
            _require_json(request)
        case _:
            message = "GraphQL is served by GET and POST."
            raise HTTPRefusal(HTTPStatus.METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", message, {"allow": "GET, POST"})


def _require_same_site(request: Request) -> None:
    """Refuse a GET without proof of its site: an image tag of another site sends one with the user's cookies."""
    if request.headers.get("sec-fetch-site") in ("same-origin", "none"):
        return
    if not any(name in request.headers for name in PREFLIGHT_HEADERS):
        names = ", ".join(PREFLIGHT_HEADERS)
        raise HTTPRefusal(HTTPStatus.FORBIDDEN, "CSRF", f"A GET needs one of these headers, with any value: {names}.")


def _require_json(request: Request) -> None:
    """Refuse a body that is not JSON: a form of another site can post text/plain, urlencoded and multipart only."""
    media_types = request.headers.getlist("content-type")
    if len(media_types) != 1 or not _is_utf8_json(media_types[0]) or "content-encoding" in request.headers:
        message = f"The body must be {JSON} in UTF-8, without a content encoding."
        raise HTTPRefusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", message, {"accept-post": JSON})


def _is_utf8_json(content_type: str) -> bool:
    media_type, *parameters = (part.strip().lower() for part in content_type.split(";"))
    charsets = [each.removeprefix("charset=").strip('"') for each in parameters if each.startswith("charset=")]
    return media_type == JSON and all(charset == "utf-8" for charset in charsets)


def _parameters(request: Request) -> dict[str, object]:
    """Return the query string as the object that a POST would send."""
    found: dict[str, object] = {}
    for name, text in request.query_params.multi_items():
        if name not in GET_PARAMETERS:
            continue
        if name in found:
            raise BadRequest(f'"{name}" is given twice.')
        found[name] = decode_json(text, f'"{name}"') if text and name in ("variables", "extensions") else text
    # A form or a link template sends an empty value for a parameter that it leaves out.
    return {name: value for name, value in found.items() if value != "" or name == "query"}


def _not_admitted(error: PublicError) -> HTTPRefusal:
    if error.code == "UNAUTHENTICATED":
        return HTTPRefusal(HTTPStatus.UNAUTHORIZED, error.code, str(error), {"www-authenticate": "Bearer"})
    return HTTPRefusal(HTTPStatus.FORBIDDEN, error.code, str(error))


def _status(result: Result, media_type: str) -> HTTPStatus:
    # The specification keeps the status of application/json at 200: an error status may come from a proxy.
    return HTTPStatus.OK if result.executed or media_type == JSON else HTTPStatus.BAD_REQUEST


def _error(
    status: HTTPStatus, code: str, message: str, media_type: str | None, headers: Mapping[str, str] | None = None
) -> Response:
    body = msgspec.json.encode({"errors": [{"message": message, "extensions": {"code": code}}]})
    return _json(status, body, media_type or JSON, headers)


def _json(status: HTTPStatus, body: bytes, media_type: str, headers: Mapping[str, str] | None = None) -> Response:
    # The response depends on the caller and on Accept, so no cache may keep it.
    fixed = {"content-type": f"{media_type}; charset=utf-8", "cache-control": "no-store", "vary": "accept"}
    return Response(body, status, {**fixed, **(headers or {})})
