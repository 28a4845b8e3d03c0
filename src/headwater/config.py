"""Settings: everything that may differ from one start to another, read once from the environment and then frozen."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints
from urllib.parse import urlsplit, urlunsplit

import msgspec
from msgspec import Meta

from headwater.errors import SettingsError


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one process. The variable of a field is HEADWATER_ and its name, but for DATABASE_URL."""

    database_url: Annotated[
        str | None,
        Meta(description="The PostgreSQL to use. Only `headwater dev` starts one of its own where this is not set."),
    ] = None
    data: Annotated[
        Path, Meta(description="Directory of the PostgreSQL that `headwater dev` starts; kept between runs.")
    ] = Path(".headwater")
    host: Annotated[
        str, Meta(description="Address to listen on. `0.0.0.0` is every address of the machine, also those that others reach.")
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes any that is free.")] = 8000
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="The least that is worth a line in the log.")
    ] = "info"
    pool_size: Annotated[
        int, Meta(ge=1, le=1000, description="Connections of a process that answer queries, beside a few fixed ones.")
    ] = 10
    append_queue: Annotated[
        int, Meta(ge=1, description="Commands that may wait for the log; past that, commands are answered `OVERLOADED`.")
    ] = 10_000
    append_batch: Annotated[int, Meta(ge=1, le=10_000, description="Commands written in one transaction at most.")] = 500
    stream_cache: Annotated[
        int, Meta(ge=0, description="Streams whose state is kept in memory, so that deciding reads nothing.")
    ] = 100_000
    projection_batch: Annotated[
        int, Meta(ge=1, le=100_000, description="Events that a projection folds in one transaction at most.")
    ] = 2_000
    projection_cache: Annotated[int, Meta(ge=0, description="Rows that each projection keeps in memory.")] = 100_000
    poll_seconds: Annotated[
        float, Meta(gt=0, le=60, description="Longest time until a change is noticed whose doorbell was lost.")
    ] = 1.0
    statement_timeout_seconds: Annotated[
        float, Meta(gt=0, le=3600, description="Longest time that a query of a client may take in PostgreSQL.")
    ] = 10.0
    at_least_seconds: Annotated[
        float, Meta(gt=0, le=300, description="Longest time that a read waits for the position it was asked for.")
    ] = 10.0
    shutdown_seconds: Annotated[
        float, Meta(gt=0, le=300, description="Time for what is under way to end after Ctrl-C or SIGTERM.")
    ] = 4.0
    default_page: Annotated[int, Meta(ge=1, description="Rows of a page when `first` is not given.")] = 50
    max_page: Annotated[int, Meta(ge=1, le=10_000, description="Rows of a page at most; more are refused.")] = 500
    outbox: Annotated[
        int, Meta(ge=1, description="Changed rows waiting for a slow subscriber; past that it gets a reset.")
    ] = 10_000
    allowed_origins: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^https?://[^/,\s]+$")], ...],
        Meta(description="Origins whose pages may open a socket, separated by commas; none is the server's own only."),
    ] = ()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Reads the variables; an empty one counts as not set.

        Raises:
            SettingsError: a value cannot be used, or a HEADWATER_ variable is none of ours: probably misspelt.
        """
        given = {name: value for name, value in environ.items() if value and is_ours(name)}
        unknown = sorted(given.keys() - VARIABLES.keys())
        if unknown:
            raise SettingsError(misspelt(unknown[0]))
        settings = cls(**{VARIABLES[name]: read(name, value) for name, value in given.items()})
        if settings.default_page > settings.max_page:
            raise SettingsError(
                f"HEADWATER_DEFAULT_PAGE is {settings.default_page}, more than HEADWATER_MAX_PAGE,"
                f" which is {settings.max_page}: lower the one or raise the other"
            )
        return settings

    def __repr__(self) -> str:
        """Without the password: settings are printed and logged."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        values["database_url"] = self.database_url and without_password(self.database_url)
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def variable(field: str) -> str:
    return "DATABASE_URL" if field == "database_url" else f"HEADWATER_{field.upper()}"


TYPES: Mapping[str, Any] = get_type_hints(Settings, include_extras=True)
VARIABLES: Mapping[str, str] = {variable(field): field for field in Settings.__struct_fields__}
DEFAULTS: Mapping[str, Any] = msgspec.structs.asdict(Settings())


def is_ours(name: str) -> bool:
    return name == "DATABASE_URL" or name.startswith("HEADWATER_")


def misspelt(name: str) -> str:
    near = difflib.get_close_matches(name, VARIABLES, n=1)
    advice = f"did you mean {near[0]}?" if near else "remove it; docs/settings.md lists those there are"
    return f"{name} is not a setting of Headwater: {advice}"


def read(name: str, text: str) -> Any:
    field = VARIABLES[name]
    reader = READERS.get(field, as_written)
    try:
        value = msgspec.convert(reader(text.strip()), TYPES[field], strict=False, dec_hook=path)
    except (msgspec.ValidationError, ValueError):
        value = None
    if value is None or (isinstance(value, float) and not isfinite(value)):
        got = "is not usable" if field == "database_url" else f"is {text!r}"
        raise SettingsError(f"{name} {got}: {advice(field, text)}")
    return value


def as_written(text: str) -> object:
    return text


def origins(text: str) -> list[str]:
    return [origin.strip() for origin in text.split(",") if origin.strip()]


def database_url(text: str) -> str:
    scheme, _, rest = text.partition("://")
    parts = urlsplit(f"postgresql://{rest}")
    if scheme not in ("postgresql", "postgres") or not rest or parts.port == 0:
        raise ValueError(scheme)
    return f"postgresql://{rest}"


def path(wanted: type, text: object) -> Path:
    return Path(str(text))


READERS: Mapping[str, Callable[[str], object]] = {
    "allowed_origins": origins,
    "database_url": database_url,
    "log_level": str.lower,
}


def without_password(url: str) -> str:
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    query = re.sub(r"(?<=\bpassword=)[^&]*", "***", parts.query)
    return urlunsplit(parts._replace(netloc=user.partition(":")[0] + at + host, query=query))


# What may be written, in words: for the sentence of an error, and for docs/settings.md


def advice(field: str, text: str) -> str:
    if text.startswith("tcp://"):
        return "Kubernetes sets it for a service named headwater; give the pod `enableServiceLinks: false`"
    if field == "database_url" and "+" in text.partition("://")[0]:
        return "write postgresql:// without a driver"
    return f"it must be {values_of(field)}; without it, it would be {default_of(field) or 'unset'}"


def values_of(field: str) -> str:
    """`a whole number from 1 to 1000`, from the field's type."""
    if field in WORDS:
        return WORDS[field]
    match msgspec.inspect.type_info(TYPES[field]):
        case msgspec.inspect.Metadata(type=inner):
            pass
        case inner:
            pass
    match inner:
        case msgspec.inspect.IntType(ge=low, le=high):
            return f"a whole number {between(low, high)}"
        case msgspec.inspect.FloatType(gt=low, le=high):
            return f"a number of seconds above {low:g}, at most {high:g}"
        case msgspec.inspect.LiteralType(values=values):
            return "one of " + ", ".join(map(str, values))
        case _:
            return "text"


WORDS: Mapping[str, str] = {
    "allowed_origins": "a list such as https://one.example,https://two.example:8443",
    "data": "a path",
    "database_url": "a URL such as postgresql://user:password@host:5432/database",
    "host": "an address or a name",
}


def between(low: int | None, high: int | None) -> str:
    return f"from {low} to {high}" if high is not None else f"of at least {low}"


def default_of(field: str) -> str:
    value = DEFAULTS[field]
    return "" if value in (None, ()) else str(value)


def settings_table() -> str:
    """The table of docs/settings.md; `python -m headwater.config` prints it."""
    rows = ["| variable | default | value | what it is |", "|---|---|---|---|"]
    for name, field in VARIABLES.items():
        default = default_of(field)
        about = msgspec.inspect.type_info(TYPES[field])
        rows.append(f"| `{name}` | {f'`{default}`' if default else ''} | {values_of(field)} | {description(about)} |")
    return "\n".join(rows) + "\n"
