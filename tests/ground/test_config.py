"""Settings: how they are read from the environment, and the error for each value that cannot be used."""

import asyncio
import re
from pathlib import Path

import asyncpg
import pytest

from headwater.config import VARIABLES, Settings, settings_table
from headwater.errors import SettingsError
from headwater.graphql.origin import AllowedOrigins, Origin
from headwater.postgres.reaching import reaching

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = Settings.from_environment({})
    assert settings == Settings()
    assert (settings.host, settings.port, settings.data) == ("127.0.0.1", 8000, Path(".headwater"))
    assert settings.database_url is None
    assert settings.allowed_origins == ()


def test_values_of_every_type_are_read_from_the_environment() -> None:
    assert Settings.from_environment(
        {
            "DATABASE_URL": "postgres://me:secret@db.example:5433/bank?sslmode=require",
            "HEADWATER_DATA": "/a path/with spaces",
            "HEADWATER_HOST": "::1",
            "HEADWATER_PORT": " 9000 ",
            "HEADWATER_POLL_SECONDS": "0.25",
            "HEADWATER_SHUTDOWN_SECONDS": "10",
            "HEADWATER_ALLOWED_ORIGINS": "https://one.example, http://localhost:3000,",
            "HEADWATER_LOG_LEVEL": "WARNING",
            "PATH": "/bin",
        }
    ) == Settings(
        database_url="postgresql://me:secret@db.example:5433/bank?sslmode=require",
        data=Path("/a path/with spaces"),
        host="::1",
        port=9000,
        poll_seconds=0.25,
        shutdown_seconds=10.0,
        allowed_origins=("https://one.example", "http://localhost:3000"),
        log_level="warning",
    )


def test_an_empty_or_blank_value_counts_as_not_set() -> None:
    for empty in ("", " ", "\t\n"):  # a blank host would listen on every address of the machine
        environ = dict.fromkeys([*VARIABLES, "HEADWATER_WHATEVER"], empty)
        assert Settings.from_environment(environ) == Settings()


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        (
            "HEADWATER_PORT",
            "eighty",
            "HEADWATER_PORT is 'eighty': it must be a whole number, at least 0, at most 65535; the default is 8000",
        ),
        (
            "HEADWATER_PORT",
            "65536",
            "HEADWATER_PORT is '65536': it must be a whole number, at least 0, at most 65535; the default is 8000",
        ),
        (
            "HEADWATER_PORT",
            "tcp://10.0.0.1:8000",
            "HEADWATER_PORT is 'tcp://10.0.0.1:8000': Kubernetes sets it for a service named headwater;"
            " set `enableServiceLinks: false` in the pod",
        ),
        (
            "HEADWATER_APPEND_QUEUE",
            "0",
            "HEADWATER_APPEND_QUEUE is '0': it must be a whole number, at least 1; the default is 10000",
        ),
        (
            "HEADWATER_LOG_LEVEL",
            "loud",
            "HEADWATER_LOG_LEVEL is 'loud': it must be one of debug, info, warning, error; the default is info",
        ),
        (
            "HEADWATER_ALLOWED_ORIGINS",
            "https://one.example,two.example",
            "HEADWATER_ALLOWED_ORIGINS is 'https://one.example,two.example': it must be a list such as"
            " https://one.example,https://two.example:8443",
        ),
        (
            "HEADWATER_POOLSIZE",
            "3",
            "HEADWATER_POOLSIZE is not a setting of Headwater: did you mean HEADWATER_POOL_SIZE?",
        ),
        (
            "HEADWATER_XYZZY",
            "3",
            "HEADWATER_XYZZY is not a setting of Headwater: remove it; docs/settings.md lists all settings",
        ),
        (
            "HEADWATER_MAX_PAGE",
            "20",
            "HEADWATER_DEFAULT_PAGE is 50, more than HEADWATER_MAX_PAGE, which is 20:"
            " lower the first or raise the second",
        ),
    ],
)
def test_the_error_for_an_unusable_value_says_what_to_change(name: str, value: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({name: value})
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    "origin",
    [
        "https://a.example:99999",
        "https://a.example:0",
        "https://a.example:",
        "https://a.example:x",
        "https://user@a.example",
        "https://user:word@a.example:8443",
        "https://[::1",
        "https://[::1]x",
        "https://[::g]",
        "https://::1",
        "https://a.example?x",
        "https://a.example#x",
        "https://a.example/",
        "https://*.example",
        "https://*",
        "https://a..example",
        "https://bücher.example",
        "https://",
        "ftp://a.example",
        "null",
        "*",
    ],
)
def test_an_origin_that_no_browser_sends_is_rejected(origin: str) -> None:
    value = f"https://one.example,{origin}"
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"HEADWATER_ALLOWED_ORIGINS": value})
    assert str(caught.value) == (
        f"HEADWATER_ALLOWED_ORIGINS is {value!r}: it must be a list such as"
        " https://one.example,https://two.example:8443"
    )


def test_the_origin_check_of_sockets_can_parse_every_accepted_origin() -> None:
    written = (
        *("https://a.example", "http://localhost:3000", "https://A.Example:443", "https://a_b.c-d.example."),
        *("http://127.0.0.1:8000", "http://[::1]:8000", "https://[2001:db8::1]", "https://xn--bcher-kva.example"),
    )
    settings = Settings.from_environment({"HEADWATER_ALLOWED_ORIGINS": ",".join(written)})
    assert settings.allowed_origins == written
    assert all(map(Origin.parse, written))
    AllowedOrigins(settings.allowed_origins)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "61", "1 s", "1,5"])
def test_a_number_of_seconds_that_is_not_positive_and_finite_is_rejected(value: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"HEADWATER_POLL_SECONDS is {value!r}: it must be a number")):
        Settings.from_environment({"HEADWATER_POLL_SECONDS": value})


@pytest.mark.parametrize(
    "url, sentence",
    [
        ("mysql://me:secret@db/bank", "DATABASE_URL begins with mysql://: it must be a URL such as"),
        ("me:secret@db/bank", "DATABASE_URL is not a URL: it must be a URL such as"),
        ("postgresql://", "DATABASE_URL begins with postgresql://: it must be a URL such as"),
        ("postgresql://me:secret@[::1/bank", "DATABASE_URL begins with postgresql://: it must be a URL such as"),
        ("postgresql://me:secret@db/bank?sslmode", "DATABASE_URL begins with postgresql://: it must be a URL such as"),
        (
            "postgresql+asyncpg://me:secret@db/bank",
            "DATABASE_URL begins with postgresql+asyncpg://: write postgresql://",
        ),
    ],
)
def test_the_error_for_a_wrong_database_url_does_not_show_its_password(url: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"DATABASE_URL": url})
    assert str(caught.value).startswith(sentence)
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(caught.value.__cause__)


@pytest.mark.parametrize("text, seconds", [("0.0009", 0.001), ("1e-300", 0.001), ("0.001", 0.001), ("0.25", 0.25)])
def test_a_statement_timeout_below_a_millisecond_is_rounded_up_to_one(text: str, seconds: float) -> None:
    """PostgreSQL counts whole milliseconds and takes 0 as no limit."""
    settings = Settings.from_environment({"HEADWATER_STATEMENT_TIMEOUT_SECONDS": text})
    assert settings.statement_timeout_seconds == seconds


@pytest.mark.parametrize("text", ["0", "-0.0001", "nan", "inf", "soon", "1_0"])
def test_a_statement_timeout_that_is_not_a_positive_number_is_rejected(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^HEADWATER_STATEMENT_TIMEOUT_SECONDS is '.*': it must be a number above"):
        Settings.from_environment({"HEADWATER_STATEMENT_TIMEOUT_SECONDS": text})


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://host:notaport/secret",
        "postgresql://host:99999/secret",
        "postgresql://host:0/secret",
        "postgresql://one:5432,two:x/secret",
        "postgresql://[::1]:x/secret",
        "postgresql://me:sec/secret@host/bank",
        "postgresql://host/secret?port=x",
    ],
)
def test_a_database_url_with_an_invalid_port_is_rejected(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"DATABASE_URL": url})
    assert str(caught.value) == (
        "DATABASE_URL: its port must be a number from 1 to 65535; if what stands there is part of the password,"
        " write / as %2F, @ as %40, : as %3A, ? as %3F and # as %23 in the password"
    )


def test_a_database_url_with_an_unknown_sslmode_is_rejected() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"DATABASE_URL": "postgresql://me:secret@host/bank?sslmode=bogus"})
    assert str(caught.value) == (
        "DATABASE_URL: its sslmode is 'bogus'; it must be one of disable, allow, prefer, require, verify-ca,"
        " verify-full"
    )


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///bank?host=/var/run/postgresql",
        "postgresql://me@%2Fvar%2Frun/bank",
        "postgresql://me:s%2Fe%40c@[::1]:5432/bank",
        "postgresql://[::1]/bank",
        "postgresql://one:5432,two/bank?target_session_attrs=primary",
        "postgresql://host?sslmode=verify-full&port=5433,5434",
    ],
)
def test_unusual_forms_of_a_database_url_are_accepted(url: str) -> None:
    assert Settings.from_environment({"DATABASE_URL": url}).database_url == url


def test_a_database_url_that_the_driver_rejects_is_a_settings_error_not_an_outage() -> None:
    with (
        pytest.raises(
            SettingsError, match=r"^DATABASE_URL cannot be used \(target_session_attrs .*; change the setting$"
        ),
        reaching(),
    ):
        asyncio.run(asyncpg.connect("postgresql://host/bank?target_session_attrs=bogus"))


def test_the_url_for_listen_is_checked_as_the_database_url_is() -> None:
    pooled = {"DATABASE_URL": "postgresql://pooler:6432/bank"}
    listening = pooled | {"HEADWATER_LISTEN_URL": "postgres://me:secret@db/bank"}
    assert Settings.from_environment(listening).listen_url == "postgresql://me:secret@db/bank"
    with pytest.raises(SettingsError, match=r"^HEADWATER_LISTEN_URL begins with mysql://: it must be a URL such as"):
        Settings.from_environment(pooled | {"HEADWATER_LISTEN_URL": "mysql://me:secret@db/bank"})
    with pytest.raises(SettingsError, match=r"^HEADWATER_LISTEN_URL: its port must be a number"):
        Settings.from_environment(pooled | {"HEADWATER_LISTEN_URL": "postgresql://me:sec/ret@db/bank"})


def test_a_url_for_listen_without_a_database_url_is_rejected() -> None:
    with pytest.raises(SettingsError, match="HEADWATER_LISTEN_URL is set and DATABASE_URL is not: set it to"):
        Settings.from_environment({"HEADWATER_LISTEN_URL": "postgresql://db/bank"})


def test_the_repr_of_settings_hides_the_urls_of_the_database() -> None:
    url = "postgresql://me:sec%2Fxyz@db/bank"
    settings = Settings.from_environment({"DATABASE_URL": url, "HEADWATER_LISTEN_URL": url})
    assert "xyz" not in repr(settings)
    assert "database_url='***', listen_url='***'" in repr(settings)
    assert "database_url=None" in repr(Settings())


def test_the_table_in_docs_settings_is_up_to_date() -> None:
    page = PAGE.read_text()
    assert page[page.index("| variable") :] == settings_table(), (
        "replace the table with the output of `python -m headwater.config`"
    )
