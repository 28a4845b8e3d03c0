"""Serves the built explorer: its page, its files and the examples that it opens as tabs."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from headwater.graphql.explorer.examples import Example

STATIC = Path(__file__).parent / "static"

# The editor writes inline styles, and its style sheets embed fonts as data URLs. Its workers are files of ours.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "worker-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "font-src 'self' data:",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
NOT_BUILT = "The explorer has not been built. Run `make explorer` in the source checkout.\n"


class HashedFiles(StaticFiles):
    """Static files whose names change with their content, so that a browser may cache them for ever."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(SECURITY_HEADERS | {"Cache-Control": "public, max-age=31536000, immutable"})
        return response

    async def check_config(self) -> None:
        """Do nothing: Starlette would raise if the explorer is not built; here each request gets a 404."""


def explorer_routes(examples: Sequence[Example], static: Path = STATIC) -> list[BaseRoute]:
    """Return the routes that the page needs besides the API, all below `/explorer`."""
    listed = [asdict(example) for example in examples]

    async def examples_json(request: Request) -> Response:
        return JSONResponse(listed, headers=SECURITY_HEADERS | {"Cache-Control": "no-cache"})

    return [
        Route("/explorer/examples.json", examples_json),
        Mount("/explorer/assets", HashedFiles(directory=static / "assets", check_dir=False)),
    ]


async def explorer(request: Request) -> Response:
    """Serve the page at the address of the API: the page sends its requests to the path that it was loaded from."""
    return explorer_page(STATIC)


def explorer_page(static: Path) -> Response:
    headers = SECURITY_HEADERS | {"Cache-Control": "no-store"}
    try:
        page = (static / "index.html").read_bytes()
    except FileNotFoundError:
        return PlainTextResponse(NOT_BUILT, status_code=503, headers=headers)
    return Response(page, media_type="text/html", headers=headers)
