"""The pytest plugin in a project of a user: a file of tests, pyproject.toml, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.support.commands import run_program

PROJECT = """
[tool.headwater]
app = "bank.main:app"

[tool.pytest.ini_options]
asyncio_mode = "auto"
asyncio_default_fixture_loop_scope = "function"
filterwarnings = ["error"]
"""
TESTS = """
from decimal import Decimal
from uuid import uuid4

import pytest

from bank.accounts.domain import Deposit, OpenAccount
from bank.accounts.views import AccountView


@pytest.mark.parametrize("amount", range(1, {tests} + 1))
async def test_a_database_is_a_tests_own(headwater_app, amount):
    account = uuid4()
    await headwater_app.execute(OpenAccount(account_id=account, owner_id=uuid4(), currency="EUR"))
    await headwater_app.client.mutate("deposit", {{"accountId": str(account), "amount": str(amount)}})
    await headwater_app.settle()
    page = await headwater_app.page(AccountView)
    assert [(row.account_id, row.balance) for row in page.rows] == [(account, Decimal(amount))]
"""


async def run_pytest(project: Path, *arguments: str) -> tuple[int | None, str]:
    return await run_program(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, cwd=project)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "test_mine.py").write_text(TESTS.format(tests=3))
    return tmp_path


async def test_each_test_of_a_project_has_the_app_on_a_database_of_its_own(project: Path) -> None:
    code, printed = await run_pytest(project)
    assert (code, printed.splitlines()[-1].partition(" in ")[0]) == (0, "3 passed"), printed


async def test_a_project_without_pytest_asyncio_still_runs_its_other_tests(project: Path) -> None:
    (project / "test_mine.py").write_text("def test_nothing(): ...")
    (project / "pyproject.toml").unlink()
    code, printed = await run_pytest(project, "-p", "no:asyncio")
    assert (code, printed.splitlines()[-1].partition(" in ")[0]) == (0, "1 passed"), printed
