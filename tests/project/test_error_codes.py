"""docs/errors.md lists what clients can meet, and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from headwater.errors import PublicError
from headwater.graphql.frames import CloseCode
from headwater.live.watcher import ResetReason

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
CODE = re.compile(r"[A-Z]+(_[A-Z]+)*")
MESSAGE_TOO_BIG = 1009
"""The close code that the WebSocket library sends by itself."""


def listed(heading: str) -> list[str]:
    """Return the first cells of the table under a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `?([A-Z\d_]+)`? \|", section, re.MULTILINE)


def test_every_error_code_of_the_code_is_listed_once() -> None:
    ours = {error.code for error in _all(PublicError) if error.__module__.startswith("headwater.")}
    given = {code for file in (ROOT / "src" / "headwater").rglob("*.py") for code in _codes(file)}
    page = listed("Errors of an operation") + listed("Requests that are refused")
    assert len(ours | given) > 25
    assert sorted(page) == sorted(ours | given)


def test_every_close_code_is_listed_once() -> None:
    codes = [code for name, code in vars(CloseCode).items() if name.isupper()]
    assert [int(code) for code in listed("Close codes of sockets")] == sorted([*codes, MESSAGE_TOO_BIG])


def test_every_reset_reason_is_listed_once() -> None:
    assert sorted(listed("Reset reasons")) == sorted(ResetReason.__members__)


def _all(cls: type[PublicError]) -> list[type[PublicError]]:
    return [each for sub in cls.__subclasses__() for each in (sub, *_all(sub))]


def _codes(file: Path) -> Iterator[str]:
    """Yield the codes that a module gives to errors without a class: arguments of the functions that make them."""
    if file.parent.name not in {"graphql", "server"}:
        return
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in MAKERS:
                given: list[ast.AST] = [each for each in node.args if not isinstance(each, ast.Dict)]  # headers
            case ast.Dict() if any(isinstance(key, ast.Constant) and key.value == "code" for key in node.keys):
                given = [*node.values]
            case ast.Assign(targets=[ast.Name(id="CODE")]):
                given = [node.value]
            case _:
                continue
        constants = (each for part in given for each in ast.walk(part) if isinstance(each, ast.Constant))
        yield from (each.value for each in constants if isinstance(each.value, str) and CODE.fullmatch(each.value))


MAKERS = {"HTTPRefusal", "_unread", "_with_code", "error_of", "refuse", "refused"}
"""The functions that take the code of an error that has no class."""
