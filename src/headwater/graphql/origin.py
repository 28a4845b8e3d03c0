"""Whose pages may open a socket: browsers let every site try, and send the user's cookies along."""

from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """An origin in its one normal form: lower case, with its port."""

    scheme: str
    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> "Origin | None":
        """None for what is not an origin, `null` included, which is what a sandboxed page sends."""
        try:
            parts = urlsplit(text)
            port = parts.port or DEFAULT_PORTS.get(parts.scheme)
        except ValueError:
            return None
        more = parts.path or parts.query or parts.fragment or "@" in parts.netloc
        return cls(parts.scheme, parts.hostname, port) if parts.hostname and not more else None


class AllowedOrigins:
    """The judge of a socket's Origin header. None allows the page's own host only; a set allows its members only.

    No header is no browser, and such a client carries nobody's cookies: it may.
    """

    def __init__(self, allowed: Iterable[str] | None) -> None:
        self._allowed = None if allowed is None else frozenset(_configured(each) for each in allowed)

    def admits(self, connection: HTTPConnection) -> bool:
        headers = connection.headers.getlist("origin")
        if not headers:
            return True
        origin = Origin.parse(headers[0]) if len(headers) == 1 else None
        if origin is None:
            return False
        return _is_own(connection, origin) if self._allowed is None else origin in self._allowed


def _configured(text: str) -> Origin:
    origin = Origin.parse(text)
    if origin is None:
        raise ValueError(f"{text!r} is not an origin: write scheme://host or scheme://host:port.")
    return origin


def _is_own(connection: HTTPConnection, origin: Origin) -> bool:
    # A proxy that ends TLS leaves us a plain ws, so only a socket that is known to be secure demands a secure page.
    if origin.scheme not in ("http", "https") or (connection.scope.get("scheme") == "wss" and origin.scheme != "https"):
        return False
    return Origin.parse(f"{origin.scheme}://{connection.headers.get('host', '')}") == origin
