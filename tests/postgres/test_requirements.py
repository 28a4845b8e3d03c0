"""What Headwater needs of PostgreSQL: without it, a start ends with a sentence that says what to change."""

from __future__ import annotations

import itertools
import json
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from tests.support.commands import run_command
from tests.support.executing import accepted
from tests.support.pgbouncer import PROGRAM, pooling
from tests.support.pooler import Pooler
from tests.support.proxy import Proxy

from bank.main import app as bank
from bank.users.domain import RegisterUser
from bank.users.views import UserView
from headwater.cli.migrate import migrated
from headwater.config import Settings
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope
from headwater.postgres.embedded import EmbeddedPostgres
from headwater.postgres.requirements import (
    MINIMUM,
    Unsuitable,
    checked,
    require_rights,
    require_to_migrate,
    require_version,
)
from headwater.server.exporters import prometheus
from headwater.server.node import Node

ROOT = Path(__file__).parents[2]
SHOWN = ["account", "transfer", "user"]
STATEMENTS = re.compile(r"run: (.*)")

MakeRole: TypeAlias = Callable[[], Awaitable[str]]

_numbers = itertools.count(1)


def as_role(dsn: str, role: str) -> str:
    """Return the address of a database for another role."""
    return dsn.replace("//postgres@", f"//{role}@")


@pytest.fixture
async def role(dsn: str) -> AsyncIterator[MakeRole]:
    """Makes ordinary roles, and drops them after the test with what they own in its database."""
    admin = await asyncpg.connect(dsn)
    made: list[str] = []

    async def make() -> str:
        made.append(f"ordinary_{next(_numbers)}")
        await admin.execute(f"create role {made[-1]} login")
        return made[-1]

    yield make
    for each in made:
        await admin.execute(f"drop owned by {each} cascade; drop role {each}")
    await admin.close()


# The server ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["serve", "work", "dev", "migrate"])
async def test_a_server_that_is_too_old_is_refused(proxy: Proxy, connection: asyncpg.Connection, command: str) -> None:
    current = connection.get_server_version().major
    proxy.replaced[b"server_version\x00%d." % current] = b"server_version\x0012."
    port = [] if command == "migrate" else ["--port", "0"]
    code, out, err = await run_command(command, *port, DATABASE_URL=proxy.dsn)
    assert (code, "Traceback" in out + err) == (1, False)
    assert re.search(
        rf"PostgreSQL 12\.\d+ is too old: Headwater needs version {MINIMUM} or newer; upgrade the server, or let "
        "DATABASE_URL name another",
        err,
    )


async def test_the_oldest_version_is_taken(connection: asyncpg.Connection) -> None:
    own = connection.get_server_version().major
    require_version(connection, own)
    with pytest.raises(Unsuitable, match=f"needs version {own + 1} or newer"):
        require_version(connection, own + 1)


@asynccontextmanager
async def pooled(dsn: str, *, of_transactions: bool) -> AsyncIterator[str]:
    """The address of a database behind a pooler."""
    with tempfile.TemporaryDirectory(prefix="hw-") as folder:  # a socket's path has to be short
        pooler = Pooler(dsn, Path(folder), of_transactions=of_transactions)
        await pooler.listen()
        yield pooler.dsn
        await pooler.close()


@pytest.mark.parametrize("command", ["serve", "work", "dev", "migrate"])
async def test_a_pooler_of_transactions_is_refused(dsn: str, command: str) -> None:
    port = [] if command == "migrate" else ["--port", "0"]
    async with pooled(dsn, of_transactions=True) as address:
        code, out, err = await run_command(command, *port, DATABASE_URL=address)
    assert (code, "Traceback" in out + err) == (1, False)
    assert "let HEADWATER_LISTEN_URL name PostgreSQL itself" in err


async def test_a_pooler_of_transactions_is_found_when_it_has_many_free_sessions(dsn: str) -> None:
    async with pooled(dsn, of_transactions=True) as address:
        others = [await asyncpg.connect(address, statement_cache_size=0) for _ in range(4)]
        for each in others:
            await each.execute("begin")  # each takes a session
        for each in others:
            await each.execute("commit")
        with pytest.raises(Unsuitable, match="pooler"):
            async with checked(address):
                pass
        for each in others:
            each.terminate()


async def test_a_pooler_of_sessions_is_taken(dsn: str) -> None:
    async with pooled(dsn, of_transactions=False) as address, checked(address) as connection:
        assert await connection.fetchval("select 1") == 1


@pytest.mark.skipif(PROGRAM is None, reason="the program pgbouncer is not installed")
@pytest.mark.parametrize("sessions", [1, 4])
async def test_pgbouncer_in_transaction_mode_needs_a_url_past_it(
    postgres: EmbeddedPostgres, dsn: str, sessions: int
) -> None:
    async with pooling(dsn, postgres.cluster, sessions=sessions) as address:
        with pytest.raises(Unsuitable, match="let HEADWATER_LISTEN_URL name PostgreSQL itself"):
            async with checked(address):
                pass
        with pytest.raises(Unsuitable, match="let HEADWATER_LISTEN_URL name"):
            async with checked(dsn, address):
                pass
        async with checked(address, dsn) as connection:
            await require_rights(connection, decides=True, works=True, shown=SHOWN, schemas=["read"])


# The rights ----------------------------------------------------------------------------------------------------------


async def register(node: Node, name: str) -> None:
    """Register a user, and wait for the row as a client does."""
    user = uuid4()
    done = await accepted(node, RegisterUser(user_id=user, email=f"{name}@example.org", name=name))
    await node.serving.feeds[UserView].reader.reach(done.position)
    query = f'{{ user(userId: "{user}") {{ name }} }}'
    answer = await Engine(bank.schema).execute(GraphQLRequest(query), Scope(node.serving))
    assert not answer.errors
    assert json.loads(answer.json)["data"] == {"user": {"name": name}}


async def test_an_ordinary_role_migrates_in_schemas_of_its_own(blank_dsn: str, role: MakeRole) -> None:
    owner = await role()
    admin = await asyncpg.connect(blank_dsn)
    database = urlsplit(blank_dsn).path.removeprefix("/")
    try:
        code, _, err = await run_command("migrate", DATABASE_URL=as_role(blank_dsn, owner), HEADWATER_LOG_FORMAT="text")
        assert code == 1
        assert f"the role {owner} may not create schemas in the database {database}" in err
        found = STATEMENTS.search(err)
        assert found is not None
        await admin.execute(found[1])
        assert not await admin.fetchval("select has_database_privilege($1, current_database(), 'create')", owner)
        for _ in range(2):
            assert (await run_command("migrate", DATABASE_URL=as_role(blank_dsn, owner)))[0] == 0
        async with Node(bank, Settings(), as_role(blank_dsn, owner), serve=True, work=True) as node:
            await register(node, "ada")
    finally:
        await admin.execute(f"drop owned by {owner} cascade")
        await admin.close()


async def test_a_role_that_may_create_schemas_needs_none(blank_dsn: str, role: MakeRole) -> None:
    owner = await role()
    admin = await asyncpg.connect(blank_dsn)
    await admin.execute(f"grant create on database {urlsplit(blank_dsn).path.removeprefix('/')} to {owner}")
    await migrated(bank, Settings(), as_role(blank_dsn, owner))
    await admin.execute(f"drop owned by {owner} cascade")
    await admin.close()


async def test_a_role_that_may_not_create_tables_cannot_migrate(
    dsn: str, connection: asyncpg.Connection, role: MakeRole
) -> None:
    name = await role()
    await connection.execute(f"set role {name}")
    with pytest.raises(Unsuitable) as refused:
        await require_to_migrate(connection, ["headwater", "read"])
    await connection.execute("reset role")
    assert str(refused.value) == (
        f"the role {name} lacks rights; as the owner of the tables, run: grant usage, create on schema headwater to "
        f"{name}; grant usage, create on schema read to {name}"
    )


async def test_a_role_that_only_serves_needs_the_rights_of_the_guide(
    dsn: str, connection: asyncpg.Connection, role: MakeRole
) -> None:
    api = await role()
    guide = (ROOT / "docs" / "operating.md").read_text()
    found = re.search(r"tested by tests/postgres/test_requirements.py -->\n```sql\n(.*?)```", guide, re.DOTALL)
    assert found is not None
    await connection.execute(re.sub(r"\bapi\b", api, found[1]).replace("owner", "postgres"))
    async with (
        Node(bank, Settings(), dsn, serve=False, work=True),
        Node(bank, Settings(), as_role(dsn, api), serve=True, work=False) as node,
    ):
        await register(node, "ada")
        assert await node.troubles() == {}


@pytest.mark.parametrize("works", [False, True], ids=["serve", "work"])
async def test_the_statements_of_the_refusal_give_every_right_that_a_process_needs(
    dsn: str, connection: asyncpg.Connection, role: MakeRole, works: bool
) -> None:
    name = await role()
    for _ in range(2 if works else 1):  # the second names the owner of the read models
        code, _, err = await run_command(
            "work" if works else "serve", "--port", "0", DATABASE_URL=as_role(dsn, name), HEADWATER_LOG_FORMAT="text"
        )
        assert (code, "Traceback" in err) == (1, False)
        found = STATEMENTS.search(err)
        assert found is not None
        await connection.execute(found[1])
    async with (
        Node(bank, Settings(), as_role(dsn, name), serve=not works, work=works) as one,
        Node(bank, Settings(), dsn, serve=works, work=not works) as other,
    ):
        await register(other if works else one, "ada")
        assert await one.troubles() == {}
        assert b"headwater_database_up 1.0" in await prometheus.text_of(one, 0)


async def test_each_right_that_is_missing_is_named(connection: asyncpg.Connection, role: MakeRole) -> None:
    name = await role()

    async def refusal() -> str:
        await connection.execute(f"set role {name}")
        try:
            await require_rights(connection, decides=True, works=False, shown=SHOWN, schemas=["read"])
        except Unsuitable as error:
            return str(error)
        finally:
            await connection.execute("reset role")
        return ""

    found = STATEMENTS.search(await refusal())
    assert found is not None
    await connection.execute(found[1])
    assert await refusal() == ""
    for statement in found[1].split("; "):
        await connection.execute(statement.replace("grant", "revoke").replace(" to ", " from "))
        if "function" in statement:  # every role has it by a grant to all
            await connection.execute(statement.replace("grant", "revoke").replace(f" to {name}", " from public"))
        assert await refusal() == f"the role {name} lacks rights; as the owner of the tables, run: {statement}"
        await connection.execute(statement)
    await connection.execute("revoke execute on all functions in schema headwater from public")
    assert "grant execute on function headwater.append(" in await refusal()


async def test_the_rights_on_every_table_are_known(connection: asyncpg.Connection, role: MakeRole) -> None:
    """A new table has to be added to what a process needs."""
    name = await role()
    await connection.execute(f"set role {name}")
    with pytest.raises(Unsuitable) as refused:
        await require_rights(connection, decides=True, works=True, shown=[], schemas=[])
    await connection.execute("reset role")
    tables = await connection.fetch("select tablename from pg_tables where schemaname = 'headwater'")
    assert set(re.findall(r"on headwater\.(\w+) to", str(refused.value))) == {row[0] for row in tables}
