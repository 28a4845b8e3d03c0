"""Checks the Origin of sockets: browsers let every site open one, and send the user's cookies with it."""

from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """An origin in normal form: lower case, with its port."""

    scheme: str
    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> "Origin | None":
        """Return None if the text is not an origin. `null`, which a sandboxed page sends, is not one."""
        try:
            parts = urlsplit(text)
            port = parts.port or DEFAULT_PORTS.get(parts.scheme)
        except ValueError:
            return None
        more = parts.path or parts.query or parts.fragment or "@" in parts.netloc
        return cls(parts.scheme, parts.hostname, port) if parts.hostname and not more else None


class AllowedOrigins:
    """The origins that may open a socket. None allows the server's own host only.

    A request without the header is admitted: it does not come from a browser and carries no user's cookies.
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
    # Behind a proxy that ends TLS the socket is plain ws, so only a wss socket requires a secure page.
    if origin.scheme not in ("http", "https") or (connection.scope.get("scheme") == "wss" and origin.scheme != "https"):
        return False
    return Origin.parse(f"{origin.scheme}://{connection.headers.get('host', '')}") == origin
