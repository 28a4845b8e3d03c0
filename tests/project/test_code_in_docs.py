"""Every Python block of the documentation runs, in the order of its page.

The blocks of a page share a namespace. What a page leaves out, such as imports that its reader knows already, stands in
a comment of the page, `<!-- python ... -->`, which no reader sees. `app.run()` runs the app on a database of
the page's own. Functions that are named `test_...` are called at the end.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^<!-- python\n(?P<hidden>.*?)^-->|^```python\n(?P<shown>.*?)^```", re.MULTILINE | re.DOTALL)
TESTED_ELSEWHERE = {"index", "tutorial"}  # by test_wheel.py and test_tutorial.py
TEXTS = {
    page.stem: text
    for page in sorted(DOCS.glob("*.md"))
    if page.stem not in TESTED_ELSEWHERE and "\n```python\n" in (text := page.read_text(encoding="utf-8"))
}


@pytest.mark.parametrize("page", TEXTS)
async def test_the_python_of_a_page_runs(page: str, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)
    namespace: dict[str, Any] = {"__name__": f"docs_{page}"}
    text = TEXTS[page]
    for block in BLOCK.finditer(text):
        code = block["hidden"] or block["shown"]
        result = eval(_compiled(code, page, text.count("\n", 0, block.start()) + 1), namespace)
        if inspect.iscoroutine(result):
            await result
    for name, each in list(namespace.items()):
        if name.startswith("test_"):
            each()


def _compiled(code: str, page: str, line: int) -> CodeType:
    """Compile a block, which may await, so that a traceback shows its lines in the page."""
    lines = "\n" * line + code
    compiled: CodeType = compile(lines, f"docs/{page}.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    return compiled
