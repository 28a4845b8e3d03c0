"""The programs of `examples/` do what they say, each as its user runs it."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from tests.support.commands import output_of, start_program

from bank.accounts.domain import Deposit, OpenAccount
from bank.accounts.views import AccountView
from bank.main import app
from headwater import Accepted, RunningApp, Settings

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
async def bank(dsn: str) -> AsyncIterator[RunningApp]:
    async with app.run(Settings(database_url=dsn)) as bank:
        yield bank


@pytest.fixture
async def account(bank: RunningApp) -> UUID:
    account = uuid4()
    await bank.execute(OpenAccount(account_id=account, owner_id=uuid4(), currency="EUR"))
    return account


async def started(dsn: str, *arguments: str, **more: str) -> asyncio.subprocess.Process:
    return await start_program(sys.executable, *arguments, cwd=EXAMPLES, DATABASE_URL=dsn, **more)


async def test_the_script_prints_what_it_did(dsn: str) -> None:
    script = await started(dsn, "script.py")
    assert (await output_of(script)).splitlines() == [
        "balance 12.50 EUR",
        "there are only 12.50",
        "1 AccountOpened None",
        "2 MoneyDeposited script",
    ]
    assert script.returncode == 0


async def test_the_worker_prints_each_deposit_until_it_is_stopped(dsn: str, bank: RunningApp, account: UUID) -> None:
    await bank.execute(Deposit(account_id=account, amount=Decimal(1)))
    worker = await started(dsn, "worker.py")
    assert worker.stdout is not None
    async with asyncio.timeout(60):
        assert f" 1 into {account}" in (await worker.stdout.readline()).decode()
        await bank.execute(Deposit(account_id=account, amount=Decimal(2)))
        assert f" 2 into {account}" in (await worker.stdout.readline()).decode()
    worker.send_signal(signal.SIGTERM)
    assert await output_of(worker) == "stopped\n"
    assert worker.returncode == 0


async def test_the_django_command_deposits_and_reports_a_refusal(dsn: str, bank: RunningApp, account: UUID) -> None:
    command = ("-m", "django", "deposit", "--settings=settings")
    site = str(EXAMPLES / "django_site")
    done = await started(dsn, *command, str(account), "12.50", PYTHONPATH=site)
    assert await output_of(done) == "deposited at position 2\n"
    row = await bank.get(AccountView, account, at_least=2)
    assert row is not None
    assert row.balance == Decimal("12.50")

    refused = await started(dsn, *command, str(uuid4()), "12.50", PYTHONPATH=site)
    assert await output_of(refused) == "CommandError: There is no such account.\n"
    assert refused.returncode == 1


async def test_the_cells_of_the_notebook_run_in_order(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)
    for name in [name for name in os.environ if name.startswith("HEADWATER_")]:
        monkeypatch.delenv(name)
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    shown = [await run_cell("".join(cell["source"]), names) for cell in cells if cell["cell_type"] == "code"]
    _, row, rows, events, _ = shown
    assert isinstance(names["deposited"], Accepted)
    assert row.balance == Decimal("12.50")
    assert rows == [(names["account"], Decimal("12.50"))]
    assert events == [(1, "AccountOpened"), (2, "MoneyDeposited")]


async def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as Jupyter does, with `await` at its top level. Returns the value of its last line."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if isinstance(last, ast.Expr):
        tree.body[-1] = ast.copy_location(ast.Assign([ast.Name("shown", ast.Store())], last.value), last)
    code = compile(ast.fix_missing_locations(tree), "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names["shown"] = None
    if inspect.isawaitable(running := eval(code, names)):
        await running
    return names["shown"]
