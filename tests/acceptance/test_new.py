"""`headwater new NAME` makes an app that passes its own tests, type-checks and starts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import run_program

from headwater.cli.new import new_app
from headwater.errors import SettingsError

PYTHON = f"PYTHON={sys.executable}"


async def test_a_new_app_passes_its_tests_and_the_checks_of_style_types_and_its_compose_file(tmp_path: Path) -> None:
    folder = new_app("ticket-shop", tmp_path)
    code, printed = await run_program("make", "test", PYTHON, cwd=folder)
    assert (code, printed.splitlines()[-1].partition(" in ")[0]) == (0, "4 passed"), printed
    style = ("--isolated", "--line-length=120")
    for tool in (
        ("ruff", "check", "--select=E,F,I,RUF,UP", *style),
        ("ruff", "format", "--check", *style),
        ("mypy", "--strict", "."),
        ("check_jsonschema", "--quiet", "--builtin-schema=vendor.compose-spec", "compose.yaml"),
    ):
        code, printed = await run_program(sys.executable, "-m", *tool, cwd=folder)
        assert code == 0, printed


async def test_a_new_app_starts_with_examples_that_run(
    headwater: Callable[..., Any], blank_dsn: str, tmp_path: Path
) -> None:
    dev = await headwater("dev", cwd=new_app("shop", tmp_path), DATABASE_URL=blank_dsn)
    examples = (await dev.get("/explorer/examples.json")).json()
    assert [each["name"] for each in examples] == ["AddTask", "CompleteTask", "Tasks", "Task changes"]
    add, _, tasks, _ = examples

    done = await dev.graphql(add["query"], **json.loads(add["variables"]))
    assert done["addTask"]["__typename"] == "AddTaskAccepted"
    assert "tasks" in await dev.graphql(tasks["query"])


@pytest.mark.parametrize("name", ["Shop", "1shop", "class", "json", "headwater", "my shop", "../shop"])
def test_a_name_that_no_package_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be the name of an app"):
        new_app(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    with pytest.raises(SettingsError, match="shop exists"):
        new_app("shop", tmp_path)
    assert list((tmp_path / "shop").iterdir()) == []
