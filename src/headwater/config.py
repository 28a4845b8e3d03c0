"""The settings of a process: read once from the environment at its start, then immutable."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from ipaddress import IPv6Address
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import Meta

from headwater.errors import SettingsError


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one process. A field's variable is `HEADWATER_` and its name, except for DATABASE_URL.

        app.run(Settings(database_url="postgresql://localhost/bank", pool_size=20))

    docs/settings.md has each of them, with its unit and its bounds.
    """

    database_url: Annotated[
        str | None,
        Meta(
            description="URL of the PostgreSQL database. If it is not set, `headwater dev` starts a PostgreSQL of its"
            " own, and the other commands use that one while it runs."
        ),
    ] = None
    listen_url: Annotated[
        str | None,
        Meta(
            description="URL of the same database without a pooler, if `DATABASE_URL` is that of a pooler in"
            " transaction mode. LISTEN, rebuilds, `headwater migrate` and the other commands of the operator use it."
        ),
    ] = None
    data: Annotated[
        Path, Meta(description="Data directory of the PostgreSQL that `headwater dev` starts. It is kept between runs.")
    ] = Path(".headwater")
    host: Annotated[
        str,
        Meta(
            description="Address to listen on. `0.0.0.0` listens on all addresses, so that other machines can connect."
        ),
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on. 0 takes any free port.")] = 8000
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Lowest level of the messages that are logged.")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "text", "json"],
        Meta(description="Form of the log's lines. `auto` writes text in a terminal, and JSON elsewhere."),
    ] = "auto"
    pool_size: Annotated[
        int,
        Meta(ge=1, le=1000, description="Database connections of a process for queries, besides a few fixed ones."),
    ] = 10
    append_queue: Annotated[
        int,
        Meta(ge=1, description="Commands that may wait to be written. Further ones are answered with `OVERLOADED`."),
    ] = 10_000
    append_batch: Annotated[int, Meta(ge=1, le=10_000, description="Most commands that one transaction writes.")] = 500
    stream_cache: Annotated[
        int, Meta(ge=0, description="Streams whose state is cached in memory, so that a decision reads nothing.")
    ] = 100_000
    projection_batch: Annotated[
        int, Meta(ge=1, le=100_000, description="Most events that a projection folds in one transaction.")
    ] = 2_000
    projection_cache: Annotated[int, Meta(ge=0, description="Rows that each projection caches in memory.")] = 100_000
    lease_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=600,
            description="Seconds after which another worker takes over from a silent one.",
        ),
    ] = 6.0
    rebuild_pause_seconds: Annotated[
        float,
        Meta(ge=0, le=60, description="Seconds that a rebuild pauses after each write, for other work."),
    ] = 0.0
    retired_seconds: Annotated[
        float, Meta(ge=0, le=86_400, description="Seconds after which the rows of a replaced generation are dropped.")
    ] = 60.0
    tombstone_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=315_360_000,
            description="Seconds that the tombstone of a removed row is kept. A subscriber that resumes from an older"
            " cursor gets all rows again.",
        ),
    ] = 604_800.0
    poll_seconds: Annotated[
        float, Meta(gt=0, le=60, description="Seconds between two checks for changes whose doorbell was lost.")
    ] = 1.0
    statement_timeout_seconds: Annotated[
        float, Meta(gt=0, le=3600, description="Most seconds that a client's query may take in PostgreSQL.")
    ] = 10.0
    at_least_seconds: Annotated[
        float, Meta(gt=0, le=300, description="Most seconds that a read waits for the position that it requests.")
    ] = 10.0
    ready_lag_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=1_000_000,
            description="Seconds that a projection may be behind before `/health/ready` of a serving process answers"
            " 503. 0: lag does not count, since it affects all processes alike, and any client can cause it.",
        ),
    ] = 0.0
    ready_failures: Annotated[
        Literal["ignored", "halted", "parked"],
        Meta(
            description="Failures of the app's functions with which `/health/ready` of a serving process answers 503."
            " `halted`: a projection, saga or reactor that halts before an event. `parked`: these, and parked keys."
        ),
    ] = "ignored"
    shutdown_seconds: Annotated[
        float, Meta(gt=0, le=300, description="Seconds that running work has to end after Ctrl-C or SIGTERM.")
    ] = 4.0
    default_page: Annotated[int, Meta(ge=1, description="Rows of a page without `first`.")] = 50
    max_page: Annotated[int, Meta(ge=1, le=10_000, description="Most rows of a page. More are rejected.")] = 500
    max_values: Annotated[
        int,
        Meta(
            ge=1,
            description="Most values that one operation may request, counting every page as full. An operation that"
            " requests more is rejected before it runs.",
        ),
    ] = 100_000
    outbox: Annotated[
        int, Meta(ge=1, description="Changed rows that may wait for a slow subscriber. With more, it gets a reset.")
    ] = 10_000
    allowed_origins: Annotated[
        tuple[str, ...],
        Meta(
            description="Origins whose pages may open a socket, separated by commas. If it is not set, only the"
            " server's own origin may."
        ),
    ] = ()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Return the settings that the variables give. An empty or blank variable counts as not set.

        Raises:
            SettingsError: a value cannot be used, or a HEADWATER_ variable is unknown, probably misspelt.
        """
        given = {name: value for name, value in environ.items() if value.strip() and is_ours(name)}
        unknown = sorted(given.keys() - VARIABLES.keys())
        if unknown:
            raise SettingsError(misspelt(unknown[0]))
        settings = cls(**{VARIABLES[name]: read(name, value) for name, value in given.items()})
        if settings.default_page > settings.max_page:
            raise SettingsError(
                f"HEADWATER_DEFAULT_PAGE is {settings.default_page}, more than HEADWATER_MAX_PAGE,"
                f" which is {settings.max_page}: lower the first or raise the second"
            )
        if settings.listen_url is not None and settings.database_url is None:
            raise SettingsError(
                "HEADWATER_LISTEN_URL is set and DATABASE_URL is not: set it to the pooler's URL of the same database"
            )
        return settings

    def __repr__(self) -> str:
        """Return the settings without the database's URLs: they are logged, and a URL may hold a password."""
        values = msgspec.structs.asdict(self)
        values |= {name: values[name] and "***" for name in URLS}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def variable(field: str) -> str:
    return "DATABASE_URL" if field == "database_url" else f"HEADWATER_{field.upper()}"


TYPES: Mapping[str, Any] = get_type_hints(Settings, include_extras=True)
ORIGIN = re.compile(r"https?://(?:[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?|\[([^\]]+)\])(?::([0-9]+))?")
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
URLS = ("database_url", "listen_url")
"""The settings that may hold a password."""
VARIABLES: Mapping[str, str] = {variable(field): field for field in Settings.__struct_fields__}
DEFAULTS: Mapping[str, Any] = msgspec.structs.asdict(Settings())


def is_ours(name: str) -> bool:
    return name == "DATABASE_URL" or name.startswith("HEADWATER_")


def misspelt(name: str) -> str:
    fields = difflib.get_close_matches(name.removeprefix("HEADWATER_").lower(), Settings.__struct_fields__, n=1)
    advice = f"did you mean {variable(fields[0])}?" if fields else "remove it; docs/settings.md lists all settings"
    return f"{name} is not a setting of Headwater: {advice}"


def read(name: str, text: str) -> Any:
    field = VARIABLES[name]
    reader = READERS.get(field, as_written)
    try:
        value = msgspec.convert(reader(text.strip()), TYPES[field], strict=False, dec_hook=path)
    except ValueError as error:  # msgspec's ValidationError is one
        raise SettingsError(f"{name} {described(field, text)}: {advice(field, text)}") from error
    if isinstance(value, float) and not isfinite(value):
        raise SettingsError(f"{name} {described(field, text)}: {advice(field, text)}")
    return value


def as_written(text: str) -> object:
    return text


def origins(text: str) -> list[str]:
    found = [origin.strip() for origin in text.split(",") if origin.strip()]
    if not all(map(is_origin, found)):
        raise ValueError("not an origin")
    return found


def is_origin(text: str) -> bool:
    """True if a browser can send it as an origin: no user, path, query or wildcard, and a host in DNS's letters."""
    found = ORIGIN.fullmatch(text)
    if found is None:
        return False
    address, port = found.groups()
    return (address is None or is_ipv6(address)) and (port is None or is_port(port))


def is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def database_url(name: str, text: str) -> str:
    scheme, _, rest = text.partition("://")
    if scheme not in ("postgresql", "postgres") or not rest:
        raise ValueError("not a URL of PostgreSQL")
    url = f"postgresql://{rest}"
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    if not all(map(is_port, (*ports_of(parts.netloc), *query.get("port", "5432").split(",")))):
        raise SettingsError(
            f"{name}: its port must be a number from 1 to 65535; if what stands there is part of the password,"
            " write / as %2F, @ as %40, : as %3A, ? as %3F and # as %23 in the password"
        )
    if query.get("sslmode", SSL_MODES[0]) not in SSL_MODES:
        raise SettingsError(f"{name}: its sslmode is {query['sslmode']!r}; it must be one of {', '.join(SSL_MODES)}")
    return url


def ports_of(authority: str) -> Iterator[str]:
    """Yield the ports in an authority such as `user:password@host:port,[address]:port`."""
    for host in authority.rpartition("@")[2].split(","):
        _, colon, port = host.rpartition("]")[2].partition(":")
        if colon:
            yield port


def is_port(text: str) -> bool:
    return text.isdecimal() and text.isascii() and 1 <= int(text) <= 65535


def statement_timeout(text: str) -> str:
    """Round a shorter time up to a millisecond: PostgreSQL counts whole milliseconds, and takes 0 as no limit."""
    return "0.001" if 0 < float(text) < 0.001 else text


def path(wanted: type, text: object) -> Path:
    return Path(str(text))


READERS: Mapping[str, Callable[[str], object]] = {
    "allowed_origins": origins,
    **{field: partial(database_url, variable(field)) for field in URLS},
    "log_format": str.lower,
    "log_level": str.lower,
    "statement_timeout_seconds": statement_timeout,
}


# The values that a setting accepts, in words, for error messages and docs/settings.md

WORDS: Mapping[str, str] = {
    "allowed_origins": "a list such as https://one.example,https://two.example:8443",
    "data": "a path",
    **dict.fromkeys(URLS, "a URL such as postgresql://user:password@host:5432/database"),
    "host": "an address or a name",
}


def described(field: str, text: str) -> str:
    """Describe the given value, leaving out the part that may hold a password."""
    if field not in URLS:
        return f"is {text!r}"
    scheme, separator, _ = text.partition("://")
    return f"begins with {scheme}://" if separator else "is not a URL"


def advice(field: str, text: str) -> str:
    if text.startswith("tcp://"):
        return "Kubernetes sets it for a service named headwater; set `enableServiceLinks: false` in the pod"
    if field in URLS and text.startswith("postgresql+"):
        return "write postgresql:// without a driver"
    default = default_of(field)
    return f"it must be {values_of(field)}" + (f"; the default is {default}" if default else "")


def values_of(field: str) -> str:
    """Return the accepted values in words, from the field's type: `a whole number, at least 1, at most 1000`."""
    if field in WORDS:
        return WORDS[field]
    kind, limits = get_args(TYPES[field])
    if kind is float:
        least = f"at least {limits.ge}" if limits.gt is None else f"above {limits.gt}"
        return f"a number {least}, at most {limits.le}"
    if kind is int:
        most = "" if limits.le is None else f", at most {limits.le}"
        return f"a whole number, at least {limits.ge}{most}"
    return "one of " + ", ".join(get_args(kind))


def default_of(field: str) -> str:
    value = DEFAULTS[field]
    return "" if value in (None, ()) else str(value)


def settings_table() -> str:
    """Return the table of docs/settings.md, which `python -m headwater.config` prints."""
    rows = ["| variable | meaning | value | default |", "|---|---|---|---|"]
    for name, field in VARIABLES.items():
        default = default_of(field) and f"`{default_of(field)}`"
        rows.append(f"| `{name}` | {TYPES[field].__metadata__[0].description} | {values_of(field)} | {default} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(settings_table())
