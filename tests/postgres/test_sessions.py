"""Session state: a session has only its initial settings and the doorbell's LISTEN.

A session's lock or setting remains if a worker hangs, and a pooler such as PgBouncer hands it to another client. See
"PgBouncer" in `docs/operating.md`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT / "src" / "headwater", ROOT / "migrations" / "versions")

OF_THE_SESSION = re.compile(
    r"""
      pg_(try_)?advisory_(un)?lock          # with _xact_ in the name, the lock belongs to the transaction
    | set_config\s*\([^)]*,\s*false\s*\)
    | ^(re)?set\s+(?!local\b)[a-z_.]+\s*(=|to\b)
    | ^reset\s+[a-z_.]+$
    | ^(un)?listen\s+\S+$
    | ^prepare\s+\w+\s*(\(|as\b)
    | ^deallocate\s
    | ^discard\s+(all|plans|sequences|temp(orary)?)$
    | \bcreate\s+((global|local)\s+)?temp(orary)?\b
    | \bwith\s+hold\b
    | \b(currval|lastval)\s*\(
    """,
    re.IGNORECASE | re.VERBOSE,
)
CALLS = {"add_listener", "prepare"}
"""Methods of the driver that add state to the session."""


def statements() -> Iterator[tuple[str, str]]:
    """Yield the file name and text of each SQL statement, and of each Python string or call that may be one."""
    for folder in FOLDERS:
        for file in folder.rglob("*.sql"):
            text = re.sub(r"^-- name:.*", ";", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            text = re.sub(r"--.*", "", text)
            yield from ((file.name, each.strip()) for each in text.split(";"))
        for file in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield from ((file.name, each.strip()) for each in node.value.split(";"))
                elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    yield file.name, f".{node.func.attr}()"


def leaves_state(statement: str) -> bool:
    """True if the statement or call leaves state in the session."""
    return OF_THE_SESSION.search(statement) is not None or statement.strip(".()") in CALLS


def test_only_the_setup_of_a_connection_and_the_doorbell_leave_state_in_a_session() -> None:
    assert sorted({(file, statement) for file, statement in statements() if leaves_state(statement)}) == [
        ("database.py", "set idle_in_transaction_session_timeout ="),
        ("database.py", "set jit = off"),
        ("database.py", "set statement_timeout ="),
        ("doorbell.py", ".add_listener()"),
    ]


@pytest.mark.parametrize(
    "statement, expected",
    [
        ("select pg_advisory_lock(1)", True),
        ("select pg_try_advisory_lock_shared(1, 2)", True),
        ("select pg_advisory_unlock_all()", True),
        ("select pg_advisory_xact_lock(1)", False),
        ("select pg_try_advisory_xact_lock(1)", False),
        ("SET search_path TO read", True),
        ("set session_replication_role = replica", True),
        ("set local lock_timeout = '1s'", False),
        ("update headwater.head\n   set position = 1", False),
        ("select set_config('jit', 'off', false)", True),
        ("select set_config('jit', $1, true)", False),
        ("reset search_path", True),
        ("listen headwater", True),
        ("prepare found as select 1", True),
        ("create temporary table found (n int)", True),
        ("declare found cursor with hold for select 1", True),
        ("discard all", True),
        (".prepare()", True),
    ],
)
def test_statements_that_leave_state_in_a_session_are_recognized(statement: str, expected: bool) -> None:
    assert leaves_state(statement) == expected
