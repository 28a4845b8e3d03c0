"""`headwater dev --reload`: a change of the code is live, the database stays, and a broken app shows its error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.running import Running

from headwater.cli.new import new_app

ADD = 'mutation { addTask(input: { title: "Milk" }) { __typename } }'
DESCRIBED = '{ __type(name: "Mutation") { fields { description } } }'


async def printed(dev: Running, text: str) -> str:
    """Read the output of the process up to a line with this text."""
    assert dev.process.stdout is not None
    async with asyncio.timeout(30):
        while text not in (line := (await dev.process.stdout.readline()).decode()):
            assert line, f"it ended without {text!r}"
    return line


async def test_a_change_is_live_the_database_stays_and_a_broken_app_shows_its_error(
    headwater: Callable[..., Any], tmp_path: Path
) -> None:
    folder = new_app("shop", tmp_path)
    domain = folder / "shop" / "tasks" / "domain.py"
    text = domain.read_text(encoding="utf-8")
    dev = await headwater("dev", "--reload", cwd=folder)
    assert await dev.graphql(ADD) == {"addTask": {"__typename": "AddTaskAccepted"}}

    domain.write_text(f"{text}\noops(\n", encoding="utf-8")
    error = await printed(dev, "cannot be parsed")
    page = await dev.get("/graphql", accept="text/html")
    assert (page.status_code, "shop/tasks/domain.py, line" in page.text) == (503, True)
    answer = await dev.get("/graphql?query={__typename}", accept="application/json")
    assert answer.json()["errors"][0]["message"] in error

    domain.write_text(text.replace("Add a task to the list.", "Write down what to do."), encoding="utf-8")
    await printed(dev, f"{dev.url}/graphql")
    fields = (await dev.graphql(DESCRIBED))["__type"]["fields"]
    assert {"description": "Write down what to do."} in fields
    assert (await dev.graphql("{ events(last: 1) { nodes { position } } }"))["events"]["nodes"]
    assert await dev.stop() == 0
